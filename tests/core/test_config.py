from typing import Self

import pytest
from pydantic import Field, model_validator

from hone.core.config import Settings, override, parse, read_toml
from hone.core.errors import ConfigError

pytestmark = pytest.mark.smoke


class Train(Settings):
    steps: int = Field(default=1, gt=0)
    learning_rate: float = 0.1

    @model_validator(mode="after")
    def _short(self) -> Self:
        if self.steps > 90 and self.learning_rate > 0.4:
            raise ValueError("Many steps need a small learning_rate")
        return self


class Recipe(Settings):
    name: str
    train: Train = Train()


def check(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return parse(Recipe, read_toml(path), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name = "a"\n[train]\nstep = 3\n',
            r'r\.toml, line 3: unknown key "train\.step"\. Did you mean "steps"\?',
        ),
        ('name = "a"\n[trian]\n', r'line 2: unknown key "trian"\. Did you mean "train"\?'),
        ("[train]\nsteps = 3\n", 'the key "name" is missing'),
        ('name = "a"\n[train]\nsteps = 0\n', r'line 3: "train\.steps" is 0; .*greater than 0'),
        ('name = "a"\n[train]\nsteps = "many"\n', r'"train\.steps" is \'many\'; .*integer'),
        ('name = "a\n', "not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        check(tmp_path, text)


def test_overrides_are_typed_and_leave_the_original_alone():
    values = {"name": "a", "train": {"steps": 1}}
    changed = override(values, ["train.steps=5", "name=b", "train.learning_rate=1e-3"])
    assert changed == {"name": "b", "train": {"steps": 5, "learning_rate": 1e-3}}
    assert values == {"name": "a", "train": {"steps": 1}}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.steps=0"], r'^--set train\.steps=0: "train\.steps" is 0; '),
        (["train.steps=7", "train.steps=many"], r"^--set train\.steps=many: "),
        (
            ["train.step=3", "train.learning_rate=0.1"],
            r'^--set train\.step=3: unknown key "train\.step"\. Did you mean',
        ),
        (["train=3"], r"^--set train=3: "),
        (["train.steps=5", "name=3"], r"^--set name=3: "),
        (["train.steps=5"], r'r\.toml, line 3: "train\.learning_rate" is \'fast\''),
        (
            ["train.learning_rate=0.5", "train.steps=99"],
            r"line 2 with --set train\.lea.*steps=99: ",
        ),
    ],
)
def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path, assignments, message):
    path = tmp_path / "r.toml"
    path.write_text('name = "a"\n[train]\nlearning_rate = "fast"\nsteps = 4\n')
    with pytest.raises(ConfigError, match=message):
        parse(Recipe, override(read_toml(path), assignments), path, assignments)


@pytest.mark.parametrize("assignment", ["steps", "=3", "name.x=3"])
def test_a_malformed_override_is_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({"name": "a"}, [assignment])
