import pytest

from hone.core.errors import ConfigError
from hone.recipes import builtin_recipes, load_recipe

pytestmark = pytest.mark.smoke


def test_the_built_in_recipes_load():
    assert "demo" in builtin_recipes()
    assert all(load_recipe(name).name == name for name in builtin_recipes())


def test_paths_are_relative_to_the_recipe_and_may_hold_variables(tmp_path, monkeypatch):
    path = tmp_path / "r.toml"
    path.write_text('[data]\ndatabase = "${SOME_DATA}/a.sqlite"\nexamples = "b.jsonl"\n')
    monkeypatch.setenv("SOME_DATA", "/data")
    data = load_recipe(path).data
    assert data.database == "/data/a.sqlite"
    assert data.examples == str(tmp_path / "b.jsonl")
    assert load_recipe(path).name == "r"
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(ConfigError, match=r'"data\.database".*SOME_DATA is not set'):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3\n", r'line 2: unknown key "train\.step"\. Did you mean "steps"\?'),
        ("[data]\nlanguages = ['fr']\n", r"data\.languages"),
        ("[model]\nheads = 0\n", r"greater than 0"),
        ("[model]\nhidden = 100\nheads = 3\n", r"hidden.*heads"),
        ("[quantize]\nmethod = 'int3'\n", r"'int8'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_no_such_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r'no recipe demmo: .*Did you mean "demo"\?'):
        load_recipe("demmo")
