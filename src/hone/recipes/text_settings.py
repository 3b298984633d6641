"""What a recipe that trains on plain text may say: ``[data] text`` makes it one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hone.core.config import Settings, override, parse, read_toml
from hone.core.errors import ConfigError
from hone.recipes.settings import ModelSettings, Positive, TrainSettings, absolute

Objective = Literal["causal", "masked", "spans", "infilling"]


class TextData(Settings):
    """``[data]``: files with a document in every row, or plain text.

    Paths are relative to the recipe's own folder.
    """

    text: tuple[str, ...]
    """Files: plain text, or JSONL, JSON, Parquet, CSV or TSV, where each row is a document."""
    column: str = "text"
    """Where a row has its text."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The share of the text that is not trained on: its end."""
    separate: bool = True
    """No token sees another document; else documents are joined by the end token and cut into
    pieces of one length, as text that goes on for ever."""

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TextTokenizer(Settings):
    """``[tokenizer]``: byte-level BPE, single characters, or one that exists."""

    kind: Literal["bpe", "characters"] = "bpe"
    vocab_size: Annotated[int, Field(ge=259)] = 8192
    path: str | None = None
    """A checkpoint or a directory with tokenizer files; then nothing is trained."""


class TextTraining(TrainSettings):
    """``[train]``: the objective, and the optimizer and its budget."""

    objective: Objective = "causal"
    """``causal``: the next token. ``masked``: hidden tokens, from both sides (BERT). ``spans``:
    missing spans, by an encoder-decoder (T5). ``infilling``: the whole text from one with missing
    spans and sentences in another order (BART)."""
    length: Positive | None = None
    """Tokens of a piece of text; unset is the model's ``context``."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of tokens that are hidden; unset is 0.15, and 0.3 for infilling."""
    whole_words: bool = False
    """Of a word, all tokens are hidden or none; with the objective ``masked``."""
    evaluate_every: Annotated[int, Field(ge=0)] = 100
    """Steps between measurements of the held-out loss; 0 is only at the end."""
    prompts: tuple[str, ...] = ()
    """Continued at every such measurement, into ``metrics.jsonl``. Causal models only."""
    keep_best: bool = False
    """Take the weights of the lowest held-out loss, not the last ones."""

    @model_validator(mode="after")
    def _fits_the_objective(self) -> Self:
        if self.objective == "causal" and self.share is not None:
            raise ValueError("share means nothing with the objective causal; leave it out")
        if self.whole_words and self.objective != "masked":
            raise ValueError(f"whole_words means nothing with the objective {self.objective}")
        if self.prompts and self.objective != "causal":
            raise ValueError(f"prompts mean nothing with the objective {self.objective}")
        for key in ("prompts", "keep_best"):
            if getattr(self, key) and not self.evaluate_every:
                raise ValueError(f"{key} needs evaluate_every, which is 0")
        return self


class TextRecipe(Settings):
    """A recipe that trains a model on text."""

    name: str
    kind: Literal["pretrain"] = "pretrain"
    seed: Annotated[int, Field(ge=0)] = 0
    trackers: tuple[Literal["tensorboard", "trackio"], ...] = ()
    """Where figures go beside ``metrics.jsonl``."""
    data: TextData
    tokenizer: TextTokenizer = TextTokenizer()
    model: ModelSettings = ModelSettings()
    train: TextTraining = TextTraining()


def load_text_recipe(path: Path, assignments: Sequence[str] = ()) -> TextRecipe:
    """Read a recipe that trains on text, with ``table.key=value`` overrides.

    Raises:
        ConfigError: something in it is wrong.
    """
    values = override(read_toml(path), assignments)
    values.setdefault("name", path.stem)
    recipe = parse(TextRecipe, values, path, assignments)
    length, context = recipe.train.length, recipe.model.context
    if length is not None and length > context:
        raise ConfigError(
            f'{path}: "train.length" is {length}, more than the {context} of "model.context".'
        )
    files = tuple(absolute(file, "data.text", path) for file in recipe.data.text)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"text": files})})


def is_text_recipe(path: Path) -> bool:
    """Whether the recipe in ``path`` trains on text.

    Raises:
        ConfigError: it is no TOML.
    """
    data = read_toml(path).get("data")
    return isinstance(data, dict) and "text" in data
