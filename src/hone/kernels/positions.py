"""What positions are to a model, in numbers: slopes, buckets, sinusoids and rotary frequencies.

What depends on no input is made on the CPU, even under a meta device: these are constants.
Shapes: N tokens, T query positions, S key positions, H query heads, R rotated dimensions.
"""

import math

import torch
from torch import Tensor


def alibi_slopes(heads: int) -> Tensor:
    """The slope of every head's distance penalty, float32 ``[H]`` (Press et al. 2022, section 3).

    A power of two of n heads has the geometric sequence 2^(-8/n), 2^(-16/n), ..., 2^-8. Any other
    number takes the sequence of the power of two below, then every second term of the sequence of
    the power of two above.

    A key at distance d before the query gets ``-slope * d`` added to its score.
    """
    below = 1 << (heads.bit_length() - 1)
    slopes = _geometric(below, torch.arange(1, below + 1, device="cpu"))
    if below == heads:
        return slopes
    odd = torch.arange(1, 2 * (heads - below), 2, device="cpu")
    return torch.cat((slopes, _geometric(2 * below, odd)))


def _geometric(heads: int, powers: Tensor) -> Tensor:
    # Powers of the rounded ratio, as checkpoints were trained with: 2^(-8k/n) differs in last bits.
    ratio = torch.full((), 2 ** (-8 / heads), dtype=torch.float32, device=powers.device)
    return ratio**powers


def relative_buckets(
    relative_TS: Tensor, count: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """The bucket of every distance, int64 ``[T, S]`` (Raffel et al. 2020, section 2.1).

    Half of the buckets of a direction hold one distance each; the others grow by a constant ratio
    up to ``max_distance``, and the last holds all that is farther.

    Args:
        relative_TS: int64 of any shape, the key's position minus the query's.
        count: buckets in all, 4 or more; the two directions share them evenly.
        max_distance: the distance from which all share a bucket; above ``count / 2``.
        bidirectional: False when no key comes after its query; those that do get bucket 0.
    """
    buckets = count // 2 if bidirectional else count
    exact = buckets // 2
    # One row of logarithms, looked up: the rounding at a boundary is the same for every shape.
    distances = torch.arange(max_distance + 1, device=relative_TS.device)
    growth = (distances.float() / exact).log() / math.log(max_distance / exact)
    # Distance 0 has the logarithm of minus infinity; its bucket is exact and not read from here.
    far = exact + (growth.clamp_min(0) * (buckets - exact)).long()
    row = torch.where(distances < exact, distances, far.clamp_max(buckets - 1))
    if not bidirectional:
        return row[(-relative_TS).clamp(0, max_distance)]
    after = (relative_TS > 0).long() * buckets
    return after + row[relative_TS.abs().clamp_max(max_distance)]


def sinusoids(positions_N: Tensor, size: int, interleaved: bool = False) -> Tensor:
    """Sines and cosines of each position, float32 ``[N, size]`` (Vaswani et al. 2017, section 3.5).

    Args:
        positions_N: integer positions.
        size: the embedding's; an odd one has one sine more than cosines.
        interleaved: sine and cosine of a frequency side by side, as the paper numbers them;
            otherwise all sines and then all cosines, as Hugging Face's tables lie.
    """
    # In float64: the sine of a large float32 angle has lost the digits that tell neighbours apart.
    pairs = torch.arange(0, size, 2, dtype=torch.float64, device=positions_N.device)
    angles = positions_N.double()[:, None] / 10000 ** (pairs / size)
    sines, cosines = angles.sin().float(), angles.cos().float()
    if interleaved:
        return torch.stack((sines, cosines), dim=-1).flatten(1)[:, :size]
    return torch.cat((sines, cosines), dim=1)[:, :size]


def rotary_periods(theta: float | Tensor, size: int) -> Tensor:
    """Positions per radian of each rotated pair, float32 ``[R/2]`` (Su et al. 2021, section 3.4.2).

    Args:
        theta: the base, a number; or float32 ``[n, 1]`` for ``[n, R/2]``.
        size: R; an odd one has its last pair's partner beyond it.
    """
    return theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)


def ntk_bases(theta: float, size: int, factor: float, context: int, lengths: Tensor) -> Tensor:
    """The rotary base for sequences of these ``lengths``, float32 of the same shape ``[n]``: beyond
    ``context`` it grows, so that the slowest pair turns no farther than at the end of the context
    (dynamic NTK scaling; Peng et al. 2023, appendix A.1 and section 3.3).
    """
    stretch_n = factor * lengths / context - (factor - 1)
    # One power at a time: among many numbers the last bit depends on what is beside a number, and
    # an angle of thousands of radians shows the last bit of its base.
    powers = [stretch ** (size / (size - 2)) for stretch in stretch_n.unbind()]
    return torch.where(lengths > context, theta * torch.stack(powers), theta)


def yarn_frequencies(
    theta: float, size: int, factor: float, context: int, turns: tuple[float, float], whole: bool
) -> Tensor:
    """Frequencies that turn often within ``context`` kept, those that seldom do divided by
    ``factor``, with a ramp between; float32 ``[R/2]`` (Peng et al. 2023, section 3.2).

    Args:
        turns: how often a pair turns within the context, where the ramp begins and where it ends.
        whole: the ramp begins and ends at whole dimensions.
    """
    low, high = (
        size * math.log(context / (count * 2 * math.pi)) / (2 * math.log(theta)) for count in turns
    )
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without a division by zero
    periods = rotary_periods(theta, size)
    place = torch.arange(len(periods), dtype=torch.float32, device="cpu")
    kept = 1 - ((place - low) / (high - low)).clamp(0, 1)
    return 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept


def llama3_frequencies(
    theta: float, size: int, factor: float, context: int, low: float, high: float
) -> Tensor:
    """Frequencies with more than ``high`` turns in ``context`` kept, those with fewer than ``low``
    divided by ``factor``, a blend between; float32 ``[R/2]`` (Llama 3.1's reference code).
    """
    frequencies = 1.0 / rotary_periods(theta, size)
    wavelengths = 2 * math.pi / frequencies
    kept = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies
