"""Rotary positions: their settings under Hugging Face's names, and the table of cosines and sines.

Shapes: N tokens, D head size, R rotated dimensions of a head.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.kernels.positions import (
    llama3_frequencies,
    ntk_bases,
    rotary_periods,
    yarn_frequencies,
)


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


def rotary_frequencies(
    rotary: Rotary, head_dim: int, context: int, length: int = 0
) -> tuple[Tensor, float]:
    """The angular frequencies in radians per position, float32 ``[R/2]`` on the CPU, and the factor
    of cosines and sines.

    Args:
        rotary: the settings.
        head_dim: D, of which R = :meth:`Rotary.rotated` dimensions turn.
        context: the model's ``max_position_embeddings``.
        length: of the sequence, where :attr:`RotaryTable.needs_lengths`.

    Raises:
        CheckpointError: heads of this size cannot be turned so.
    """
    rotary.rotated(head_dim)
    theta, size = rotary.theta, int(head_dim * rotary.fraction)
    match rotary.scaling:
        case None:
            return 1.0 / rotary_periods(theta, size), 1.0
        case LinearScaling(factor):
            return 1.0 / rotary_periods(theta, size) / factor, 1.0
        case DynamicScaling(factor):
            lengths = torch.tensor([length], device="cpu")
            base = ntk_bases(theta, size, factor, context, lengths)
            return 1.0 / rotary_periods(base, size), 1.0
        case Llama3Scaling(factor, low, high, original):
            return llama3_frequencies(theta, size, factor, original, low, high), 1.0
        case YarnScaling() as yarn:
            original = yarn.original_max_position_embeddings
            factor = context / original if yarn.factor is None else yarn.factor
            turns = (yarn.beta_fast, yarn.beta_slow)
            frequencies = yarn_frequencies(theta, size, factor, original, turns, yarn.truncate)
            return frequencies, _yarn_attention_factor(yarn, factor)
        case LongScaling() as long:
            original = long.original_max_position_embeddings
            factor = context / original if long.factor is None else long.factor
            divisors = long.long_factor if length > original else long.short_factor
            spread = torch.tensor(divisors, dtype=torch.float32, device="cpu")
            attention_factor = long.attention_factor
            if attention_factor is None:
                growth = max(math.log(factor), 0.0) / math.log(original)
                attention_factor = math.sqrt(1 + growth)
            return 1.0 / (spread * rotary_periods(theta, size)), attention_factor


def _yarn_attention_factor(yarn: YarnScaling, factor: float) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    growth = 0.1 * max(math.log(factor), 0.0)
    if yarn.mscale and yarn.mscale_all_dim:
        return (growth * yarn.mscale + 1) / (growth * yarn.mscale_all_dim + 1)
    return growth + 1


class RotaryTable:
    """Cosines and sines of positions, as one model turns its heads.

    Attributes:
        needs_lengths: the angles of a token depend on the length of its sequence.
    """

    def __init__(self, rotary: Rotary, head_dim: int, context: int) -> None:
        """See :func:`rotary_frequencies` for the arguments and errors."""
        self._settings = (rotary, head_dim, context)
        frequencies, self._factor = rotary_frequencies(rotary, head_dim, context)
        self.needs_lengths = isinstance(rotary.scaling, DynamicScaling | LongScaling)
        if isinstance(rotary.scaling, LongScaling):
            beyond = rotary.scaling.original_max_position_embeddings + 1
            long, _ = rotary_frequencies(rotary, head_dim, context, beyond)
            frequencies = torch.stack((frequencies, long))
        # Copies stay where they were needed: moving one in every pass would stall a GPU.
        self._frequencies = {frequencies.device: frequencies}

    def __call__(self, positions_N: Tensor, lengths_N: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Cosines and sines, times the scaling's factor, ``[2, N, R/2]``.

        Args:
            positions_N: of each token in its sequence.
            lengths_N: the length of each token's sequence at this pass, earlier passes included;
                needed where :attr:`needs_lengths`, else not read.
            dtype: of the result; computed in float32.
        """
        angles = self.angles(positions_N, lengths_N)
        table = torch.stack((angles.cos(), angles.sin()))
        if self._factor != 1.0:
            table *= self._factor
        return table.to(dtype)

    def angles(self, positions_N: Tensor, lengths_N: Tensor | None) -> Tensor:
        """Radians, float32 ``[N, R/2]``."""
        device = positions_N.device
        if device not in self._frequencies:
            self._frequencies[device] = self._frequencies[torch.device("cpu")].to(device)
        frequencies = self._frequencies[device]
        if self.needs_lengths:
            assert lengths_N is not None, "these rotary settings need the sequences' lengths"
            frequencies = self._of_lengths(frequencies, lengths_N)
        return positions_N.float()[:, None] * frequencies

    def _of_lengths(self, frequencies: Tensor, lengths_N: Tensor) -> Tensor:
        """Each token's own frequencies, ``[N, R/2]``."""
        rotary, head_dim, context = self._settings
        if isinstance(rotary.scaling, LongScaling):
            return frequencies[(lengths_N > rotary.scaling.original_max_position_embeddings).long()]
        assert isinstance(rotary.scaling, DynamicScaling)
        theta, size = rotary.theta, int(head_dim * rotary.fraction)
        # On the CPU whatever the device: the power's last bit is then the same everywhere.
        lengths_n, row_N = lengths_N.clamp_min(context).cpu().unique(return_inverse=True)
        base_n = ntk_bases(theta, size, rotary.scaling.factor, context, lengths_n)
        return (1.0 / rotary_periods(base_n[:, None], size))[row_N].to(lengths_N.device)


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
