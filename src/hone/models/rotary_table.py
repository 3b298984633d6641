"""Rotary positions in numbers: frequencies, and the table of cosines and sines.

Shapes: N tokens, D head size, R rotated dimensions of a head.
"""

import math

import torch
from torch import Tensor

from hone.kernels.positions import (
    llama3_frequencies,
    ntk_bases,
    rotary_periods,
    yarn_frequencies,
)
from hone.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rotary,
    YarnScaling,
)


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
