"""What a recipe may say: one class per table of the TOML file."""

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hone.core.config import Settings, override, parse, read_toml
from hone.core.errors import ConfigError
from hone.core.nearest import nearest
from hone.plan.devices import read_size

OptimizerName = Literal[
    "muon", "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"
]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(Settings):
    """``[data]``: the database, and where its questions come from.

    Paths are relative to the recipe's own folder.
    """

    database: str = "sample"
    """An SQLite file, or ``sample`` for the built-in shop."""
    glossary: str | None = None
    """A TOML file with English and Korean display names of tables and columns."""
    languages: tuple[Literal["ko", "en"], ...] = ("ko", "en")
    questions: Annotated[int, Field(ge=0)] = 40_000
    """How many questions to generate for training; 0 for none."""
    held_out: Annotated[int, Field(ge=0)] = 500
    """How many generated questions each of the two held-out sets gets."""
    examples: str | None = None
    """A JSONL file of human questions: ``question`` and ``sql``."""
    examples_where: dict[str, str] = Field(default_factory=dict)
    """Use only the examples whose fields have these values, e.g. ``{db_id = "college_2"}``."""
    examples_split: str | None = None
    """The field that says ``train`` or what an example is held out for; without it,
    ``examples_held_out`` of them are held out, at random."""
    examples_held_out: Fraction = 0.2
    examples_unit: Literal["query", "question"] = "query"
    """What is held out at random: whole queries with every question that asks them, or single
    questions, whose query may then also occur in training."""
    examples_copies: Positive = 1
    """How often a human example stands in the training set, each time with other values of the
    same columns in place of its own where that is possible."""


class TokenizerSettings(Settings):
    """``[tokenizer]``: byte-level BPE."""

    vocab_size: Annotated[int, Field(ge=259)] = 2048


class ModelSettings(Settings):
    """``[model]``: a decoder; without further choices one of the Llama shape."""

    hidden: Positive = 128
    layers: Positive = 4
    encoder_layers: Annotated[int, Field(ge=0)] = 0
    """Of an encoder-decoder, the layers of its encoder; 0 is as many as ``layers``."""
    heads: Positive = 4
    kv_heads: Positive = 2
    """Key/value heads: as many as ``heads`` is multi-head attention, 1 multi-query, else
    grouped-query."""
    ffn: Positive = 384
    context: Positive = 512
    mixer: Literal["attention", "mamba", "mamba2"] = "attention"
    """What mixes tokens; with Mamba, ``heads``, ``ffn`` and ``positions`` mean nothing."""
    positions: Literal["rotary", "learned", "sinusoidal", "alibi", "buckets", "none"] = "rotary"
    rope_theta: Annotated[float, Field(gt=1)] = 10000.0
    rope_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of each head that turns."""
    rope_scaling: dict[str, Any] | None = None
    """How rotary positions reach further: ``{rope_type = "yarn", factor = 4.0, ...}``, with the
    keys of Hugging Face's ``rope_parameters``."""
    window: Positive | None = None
    """Sliding window: a token sees so many, itself included; unset is all of them."""
    window_every: Positive = 1
    """Which layers have the window: all but every n-th, from 2 on; 1 is every layer."""
    norm: Literal["rms", "rms+1", "layer"] = "rms"
    block: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    """Where the norms stand: before each layer, after it, on both sides, or one before attention
    and feed-forward side by side."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    biases: bool = False
    """All products, and layer norms, have a bias."""
    qk_norm: bool = False
    tie: bool = True
    """The output layer is the embedding."""
    attention_softcap: Annotated[float, Field(gt=0)] | None = None
    logit_softcap: Annotated[float, Field(gt=0)] | None = None
    experts: Annotated[int, Field(ge=0)] = 0
    """Experts of each feed-forward layer, each of size ``ffn``; 0 is a plain layer."""
    experts_per_token: Positive = 2
    shared_expert: Annotated[int, Field(ge=0)] = 0
    """Size of the expert that every token takes; 0 is none."""
    state: Positive = 16
    """Numbers that each channel of a Mamba layer remembers."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads}), and "
                f"heads a multiple of kv_heads ({self.kv_heads})"
            )
        if self.mixer != "attention":
            self._refuse(
                f"the mixer {self.mixer}",
                ("positions", "rope_scaling", "window", "qk_norm", "experts", "attention_softcap"),
            )
        if self.positions != "rotary":
            self._refuse(
                f"the positions {self.positions}", ("rope_theta", "rope_fraction", "rope_scaling")
            )
        if self.window is None:
            self._refuse("attention without a window", ("window_every",))
        if not self.experts:
            self._refuse("a feed-forward part without experts", ("shared_expert",))
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must be at most experts "
                f"({self.experts})"
            )
        return self

    def _refuse(self, choice: str, keys: tuple[str, ...]) -> None:
        """Refuse keys that would mean nothing beside ``choice``."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} means nothing with {choice}; leave it out")


class TrainSettings(Settings):
    """``[train]``: the optimizer and its budget, counted in steps and never in seconds."""

    steps: Positive = 1000
    tokens_per_step: Positive = 4096
    optimizer: OptimizerName = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 8e-3
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    ema: Fraction = 0.0
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 40
    cooldown_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batches: Positive = 1
    """Parts that a step's batch is computed in, to save memory; the result is the same."""
    activation_checkpointing: Literal["none", "blocks", "selective"] = "none"
    """What the backward pass computes again instead of keeping it."""
    checkpointed_blocks: Positive = 1
    offload_activations: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that prepare batches ahead."""
    checkpoint_every: Positive = 100
    keep_last: Positive = 2
    device: str = "auto"
    """``auto`` is the first GPU if there is one, else the processor."""
    memory: str | None = None
    """What the run may take, e.g. ``8GB``; unset is most of what is free."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                read_size(value, "memory")
            except ConfigError as error:
                raise ValueError("expected a size such as 24GB, 22.5GiB or 80G") from error
        return value


class QuantizeSettings(Settings):
    """``[quantize]``: make a smaller copy of the checkpoint and score it beside the original."""

    method: Literal["int8"] = "int8"


class EvalSettings(Settings):
    """``[eval]``: greedy answers, scored by what they return from the database."""

    max_tokens: Positive = 200


class Recipe(Settings):
    """A recipe: its tables run in the order in which they stand here."""

    name: str
    seed: int = 0
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    quantize: QuantizeSettings | None = None
    eval: EvalSettings = EvalSettings()


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with hone, by name."""
    folder = Path(str(resources.files("hone.recipes") / "builtin"))
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe, named by its path or as a built-in one.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = builtin_recipes()
    if str(name_or_path) not in known:
        raise ConfigError(
            f"There is no recipe {name_or_path}: neither a file nor a built-in recipe. "
            f"{nearest(str(name_or_path), known)}"
        )
    return known[str(name_or_path)]


def load_recipe(name_or_path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a Text2SQL recipe, with ``table.key=value`` overrides.

    Paths in ``[data]`` may hold environment variables (``${HONE_DATA}/x.sqlite``); relative ones
    are made absolute against the recipe's folder.

    Raises:
        ConfigError: no such recipe, or something in it is wrong.
    """
    path = find_recipe(name_or_path)
    values = override(read_toml(path), assignments)
    values.setdefault("name", path.stem)
    recipe = parse(Recipe, values, path, assignments)
    data = recipe.data.model_copy(update=_absolute(recipe.data, path))
    return recipe.model_copy(update={"data": data})


def absolute(value: str, key: str, recipe: Path) -> str:
    """A path in a recipe, with environment variables filled in, against the recipe's folder.

    Raises:
        ConfigError: a variable is not set.
    """
    expanded = os.path.expandvars(value)
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise ConfigError(
            f'{recipe}: "{key}" is {value!r}, and the environment variable '
            f"{missing.group(1)} is not set. Set it to the folder that is meant."
        )
    return str((recipe.parent / Path(expanded).expanduser()).resolve())


def _absolute(data: DataSettings, recipe: Path) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key in ("database", "glossary", "examples"):
        value = getattr(data, key)
        if value is not None and not (key == "database" and value == "sample"):
            changed[key] = absolute(value, f"data.{key}", recipe)
    return changed
