"""Rotary positions: their settings under Hugging Face's names."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from hone.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All positions are divided by ``factor`` (Chen et al. 2023, "Position Interpolation")."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _check_positive(self, "factor")


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """The base grows with a sequence longer than the model's context (dynamic NTK scaling; Peng et
    al. 2023, "YaRN", section 3.3).
    """

    kind: ClassVar[str] = "dynamic"
    factor: float

    def __post_init__(self) -> None:
        _check_positive(self, "factor")


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Low frequencies are divided, high ones kept, those between blended (Peng et al. 2023, section
    3.4); ``None`` stands for what follows from the other numbers.

    Attributes:
        factor: None for the model's context over ``original_max_position_embeddings``.
        beta_fast, beta_slow: turns within the original context above which a frequency is kept, and
            below which it is divided.
        attention_factor: of cosines and sines; None for 0.1 · ln(factor) + 1, or for what
            ``mscale`` and ``mscale_all_dim`` make of it.
        truncate: the blend begins and ends at whole dimensions.
    """

    kind: ClassVar[str] = "yarn"
    factor: float | None
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "beta_fast", "beta_slow")
        _check_positive(self, "factor", "attention_factor", optional=True)
        _check_context(self)
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not _is_number(value):
                raise CheckpointError(f"{name} is {value!r}; it must be a number.")
        if not isinstance(self.truncate, bool):
            raise CheckpointError(f"truncate is {self.truncate!r}; it must be true or false.")
        if self.beta_fast < self.beta_slow:
            raise CheckpointError(
                f"beta_fast is {self.beta_fast!r} and beta_slow {self.beta_slow!r}; "
                "beta_fast must be the larger."
            )


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low frequencies (its model card and reference code)."""

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        _check_context(self)
        if self.high_freq_factor <= self.low_freq_factor:
            raise CheckpointError(
                f"high_freq_factor is {self.high_freq_factor!r} and low_freq_factor "
                f"{self.low_freq_factor!r}; high_freq_factor must be the larger."
            )


@dataclass(frozen=True, slots=True)
class LongScaling:
    """Each frequency has a divisor, and another in sequences longer than the original context
    (LongRoPE; Ding et al. 2024, section 3).

    Attributes:
        factor: None for the model's context over ``original_max_position_embeddings``.
        attention_factor: of cosines and sines; None for what follows from ``factor``.
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "attention_factor", optional=True)
        _check_context(self)
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(_is_positive(number) for number in value):
                raise CheckpointError(
                    f"{name} is {value!r}; it must be a list of positive numbers."
                )


RopeScaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongScaling
SCALINGS: dict[str, type[RopeScaling]] = {
    scaling.kind: scaling
    for scaling in (LinearScaling, DynamicScaling, YarnScaling, Llama3Scaling, LongScaling)
}


@dataclass(frozen=True, slots=True)
class Rotary:
    """Queries and keys are turned by their position (Su et al. 2021, section 3.4.2).

    Attributes:
        theta: the base; pair i of R/2 turns by ``theta ** (-2i / R)`` radians per position.
        fraction: the share of a head's dimensions that turns; the rest stays as it is.
        scaling: how a model reaches beyond the context that it was trained on first.
    """

    name: ClassVar[str] = "rotary"
    theta: float = 10000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.theta) or self.theta <= 1:
            raise CheckpointError(f"rope_theta is {self.theta!r}; it must be a number above 1.")
        if not _is_number(self.fraction) or not 0 < self.fraction <= 1:
            raise CheckpointError(
                f"partial_rotary_factor is {self.fraction!r}; "
                "it must be a number above 0 and at most 1."
            )

    @property
    def turning_point(self) -> int | None:
        """The length beyond which all of a sequence's tokens turn otherwise than before, so that
        what a cache holds of it must be computed again; None where there is none.
        """
        if not isinstance(self.scaling, LongScaling):
            return None
        return self.scaling.original_max_position_embeddings

    def rotated(self, head_dim: int) -> int:
        """How many of a head's dimensions turn: R, an even number.

        Raises:
            CheckpointError: heads of this size cannot be turned so.
        """
        size = int(head_dim * self.fraction)
        size += size % 2
        least = 4 if isinstance(self.scaling, DynamicScaling) else 2
        if not least <= size <= head_dim:
            raise CheckpointError(
                f"head_dim is {head_dim} and partial_rotary_factor {self.fraction!r}, so that "
                f"{size} dimensions of a head turn; it must be an even number from {least} to "
                "head_dim."
            )
        if isinstance(self.scaling, LongScaling):
            for key in ("short_factor", "long_factor"):
                count = len(getattr(self.scaling, key))
                if count != size // 2:
                    raise CheckpointError(
                        f"{key} has {count} numbers; heads with {size} rotated dimensions need "
                        f"{size // 2}."
                    )
        return size


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63  # what tensors can be multiplied with
    return isinstance(value, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _check_positive(settings: Any, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(settings, name)
        if not _is_positive(value) and not (optional and value is None):
            raise CheckpointError(f"{name} is {value!r}; it must be a positive number.")


def check_whole(settings: Any, name: str, least: int) -> None:
    """Refuse a named field that is no whole number of ``least`` or more."""
    value = getattr(settings, name)
    if type(value) is not int or not least <= value < 2**31:
        raise CheckpointError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


def _check_context(scaling: YarnScaling | Llama3Scaling | LongScaling) -> None:
    check_whole(scaling, "original_max_position_embeddings", 2)
