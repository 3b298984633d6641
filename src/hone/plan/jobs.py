"""What a plan is made for: a training job or a serving job, and how it is laid over devices."""

from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from hone.core.errors import ConfigError
from hone.core.nearest import nearest
from hone.models.config import LARGEST

Method = Literal["full", "lora", "qlora"]
OptimizerName = Literal[
    "adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"
]
Precision = Literal["fp32", "bf16", "fp16"]
Checkpointing = Literal["none", "blocks", "selective"]
WeightType = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
CacheType = Literal["float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one copy of a job is shared out over devices.

    hone trains with ``data`` copies and computes the others for planning only, by the formulas of
    the papers: what they leave on each device does not depend on who implements them.

    Attributes:
        data: copies of the model, each with micro-batches of its own.
        zero: what the copies share out: 0 nothing, 1 the optimizer's state, 2 gradients too, 3
            weights too (Rajbhandari et al. 2020, section 5; 3 is FSDP).
        tensor: parts of every matrix, with the sequence shared out between (Korthikanti et al.
            2022, section 4.2).
        pipeline: stages of consecutive blocks; the first holds the activations of as many
            micro-batches as there are stages (Narayanan et al. 2021, section 2.2).
        context: parts of every sequence (Liu et al. 2023, "Ring Attention", section 3).
    """

    data: int = 1
    zero: int = 0
    tensor: int = 1
    pipeline: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "context"):
            check_count(f"The number of devices for {name} parallelism", getattr(self, name))
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"zero is {self.zero!r}; it must be 0, 1, 2 or 3.")

    @property
    def devices(self) -> int:
        """All devices."""
        return self.data * self.tensor * self.pipeline * self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapters of a LoRA or QLoRA job (Hu et al. 2021).

    Attributes:
        rank: r.
        targets: last parts of the names of the layers that have one; "all-linear" for every linear
            layer but those that score classes.
        dropout: whether there is one: it keeps a byte for every input.
    """

    rank: int = 16
    targets: tuple[str, ...] = ("all-linear",)
    dropout: bool = False

    def __post_init__(self) -> None:
        check_count("The rank of LoRA", self.rank)
        if not self.targets:
            raise ConfigError('LoRA needs targets: names of layers, or "all-linear".')


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A training run, as its memory and its time see it.

    Attributes:
        lengths: tokens of each sequence of the largest micro-batch of one device: attention is
            computed, and its probabilities are kept, per sequence.
        source_lengths: of the sources, for a model with an encoder; empty for those of ``lengths``.
        trained: how many of the tokens are scored; None for all.
        micro_batches: that one step adds up.
        tokens: of the whole run, for its time and cost; 0 for unknown.
        method: "full" trains all weights, "lora" adapters beside frozen ones, "qlora" beside
            frozen ones in NF4 (Dettmers et al. 2023).
        optimizer, precision, freeze, ema: as in ``hone.train.TrainConfig``.
        activation_checkpointing, checkpointed_blocks, offload_activations: likewise.
        lora: of "lora" and "qlora".
        layout: over devices.

    Raises:
        ConfigError: a value that cannot be.
    """

    lengths: tuple[int, ...]
    source_lengths: tuple[int, ...] = ()
    trained: int | None = None
    micro_batches: int = 1
    tokens: int = 0
    method: Method = "full"
    optimizer: OptimizerName = "adamw"
    precision: Precision = "bf16"
    activation_checkpointing: Checkpointing = "none"
    checkpointed_blocks: int = 1
    offload_activations: bool = False
    freeze: tuple[str, ...] = ()
    ema: float = 0.0
    lora: Lora = field(default_factory=Lora)
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ConfigError("A micro-batch needs at least one sequence.")
        for length in (*self.lengths, *self.source_lengths):
            check_count("The length of a sequence", length)
        if self.source_lengths and len(self.source_lengths) != len(self.lengths):
            raise ConfigError(
                f"There are {len(self.source_lengths)} sources and {len(self.lengths)} answers."
            )
        if self.trained is not None and not 1 <= self.trained <= self.batch_tokens:
            raise ConfigError(
                f"{self.trained} tokens are trained of a micro-batch of {self.batch_tokens}; "
                "it must be at least one, and no more than there are."
            )
        check_count("micro_batches", self.micro_batches)
        check_count("checkpointed_blocks", self.checkpointed_blocks)
        check_choice("method", self.method, get_args(Method))
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice(
            "activation_checkpointing", self.activation_checkpointing, get_args(Checkpointing)
        )

    @classmethod
    def of_batch(cls, batch: int, length: int, **settings: Any) -> Self:
        """``batch`` sequences of ``length`` tokens."""
        check_count("The number of sequences", batch)
        return cls(lengths=(length,) * batch, **settings)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one micro-batch."""
        return sum(self.lengths)

    @property
    def step_tokens(self) -> int:
        """Tokens of one step on all devices."""
        return self.batch_tokens * self.micro_batches * self.layout.data


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeJob:
    """Generation.

    Attributes:
        context: tokens that each request may have, prompt and answer together.
        requests: at the same time.
        weights: the format of the linear layers' weights.
        cache: that of keys and values.
        prefill: tokens of prompts that are computed at a time; 0 for one whole context.
        tensor: devices that every matrix and the cache are shared out over.

    Raises:
        ConfigError: a value that cannot be.
    """

    context: int = 2048
    requests: int = 1
    weights: WeightType = "bfloat16"
    cache: CacheType = "bfloat16"
    prefill: int = 0
    tensor: int = 1

    def __post_init__(self) -> None:
        check_count("The context", self.context)
        check_count("The number of requests", self.requests)
        check_count("The number of tokens of a prefill", self.prefill, least=0)
        check_count("The number of devices for tensor parallelism", self.tensor)
        check_choice("weights", self.weights, get_args(WeightType))
        check_choice("cache", self.cache, get_args(CacheType))


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of ``least`` or more.

    Raises:
        ConfigError: naming it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse what is none of ``known``.

    Raises:
        ConfigError: naming what is near.
    """
    if value not in known:
        raise ConfigError(f"{name} is {value!r}. {nearest(str(value), known)}")
