"""From scores to tokens: the most likely one, or one drawn among those that the filters keep.

What a row gives depends on its own numbers only, to the last bit, and not on the rows beside it.

Shapes: R rows, V vocabulary, C candidates.
"""

import math

import torch
from torch import Tensor

# A row is searched in chunks of so many tokens: one pass over all for a figure of each chunk, and
# then a look at a single one. Reductions of whole chunks are many times as fast as argmax.
_CHUNK = 128
# At most so many candidates are looked at before the whole row is sorted.
_MOST_CANDIDATES = 1024
_FEW_CANDIDATES = 128


def likeliest(x_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the greatest numbers of each row, and its place: ``[R]`` and int64 ``[R]``.

    NaN counts as the greatest.
    """
    if x_RV.shape[1] <= 2 * _CHUNK:
        best = x_RV.max(-1)
        return best.values, best.indices
    main_RV, rest_RV = _chunks(x_RV)
    maxima = torch.cat((main_RV.amax(-1), rest_RV.amax(-1, keepdim=True)), dim=1)
    ids = _chunk_ids(maxima.argmax(-1, keepdim=True), x_RV.shape[1])
    found = x_RV.gather(1, ids)
    place_R1 = found.argmax(-1, keepdim=True)
    return found.gather(1, place_R1).squeeze(1), ids.gather(1, place_R1).squeeze(1)


def largest(x_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest numbers of each row, falling, and their places: ``x_RV.topk(count)``.

    Columns are put into groups; those with the greatest maxima hold all that is wanted.
    """
    vocabulary = x_RV.shape[1]
    size = 2 ** round(math.log2(max(1.0, math.sqrt(vocabulary / count))))
    groups = vocabulary // size
    if size < 4 or groups <= count:
        found = x_RV.topk(count)
        return found.values, found.indices
    grouped = x_RV[:, : size * groups].unflatten(1, (size, groups))
    chosen_RC = grouped.amax(1).topk(count, sorted=False).indices
    first = torch.arange(0, size * groups, groups, device=x_RV.device)
    ids = (chosen_RC[:, None] + first[:, None]).flatten(1)
    rest = torch.arange(size * groups, vocabulary, device=x_RV.device)
    ids = torch.cat((ids, rest.expand(len(ids), -1)), dim=1)
    found = x_RV.gather(1, ids).topk(count)
    return found.values, ids.gather(1, found.indices)


def floors_reference(
    probabilities_RV: Tensor, top_k_R1: Tensor, top_p_R1: Tensor, min_p_R1: Tensor
) -> Tensor:
    """The least probability ``[R, 1]`` that a token needs to pass top-k, then top-p, then min-p.

    The likeliest token always passes, and so do tokens as likely as one that does.

    Args:
        top_k_R1: int64, 1 to V; V lets all pass.
        top_p_R1: float64, above 0; 1 lets all pass.
        min_p_R1: float64, 0 lets all pass.
    """
    vocabulary = probabilities_RV.shape[1]
    falling_RV = probabilities_RV.sort(dim=-1, descending=True).values
    return _floors(falling_RV, top_k_R1, top_p_R1, min_p_R1, vocabulary)[0]


def floors(
    probabilities_RV: Tensor, top_k_R1: Tensor, top_p_R1: Tensor, min_p_R1: Tensor
) -> Tensor:
    """See :func:`floors_reference`; rows are sorted only where a few candidates do not tell."""
    vocabulary = probabilities_RV.shape[1]
    unlimited_R1 = top_k_R1 >= vocabulary
    asked = int(top_k_R1.masked_fill(unlimited_R1, _FEW_CANDIDATES).max())
    candidates = 2 ** math.ceil(math.log2(max(asked, 1)))
    count = min(max(candidates, _FEW_CANDIDATES), _MOST_CANDIDATES, vocabulary)
    falling_RC = largest(probabilities_RV, count)[0]
    floor_R1, known_R1 = _floors(falling_RC, top_k_R1, top_p_R1, min_p_R1, vocabulary)
    if count < vocabulary and not bool(known_R1.all()):
        rows = (~known_R1).squeeze(1).nonzero().squeeze(1)
        floor_R1[rows] = floors_reference(
            probabilities_RV[rows], top_k_R1[rows], top_p_R1[rows], min_p_R1[rows]
        )
    return floor_R1


def _floors(
    falling_RC: Tensor, top_k_R1: Tensor, top_p_R1: Tensor, min_p_R1: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """The floors by the C greatest probabilities, and where these suffice to know them."""
    count = falling_RC.shape[1]
    limited_R1 = top_k_R1 < vocabulary
    last_R1 = top_k_R1.clamp_max(count) - 1
    # float64: over a long tail, float32 sums would miss top_p = 0.999 by several tokens.
    mass_RC = falling_RC.cumsum(-1, dtype=torch.float64)
    wanted_R1 = top_p_R1 * torch.where(limited_R1, mass_RC.gather(1, last_R1), 1.0)
    # A token passes top-p if those before it do not reach p.
    passing_R1 = (mass_RC[:, :-1] < wanted_R1).sum(-1, keepdim=True)
    nucleus_R1 = torch.minimum(passing_R1, last_R1)
    open_R1 = top_p_R1 >= 1
    floor_R1 = falling_RC.gather(1, torch.where(open_R1, last_R1, nucleus_R1))
    floor_R1 = floor_R1.masked_fill(open_R1 & ~limited_R1, 0.0)
    reached_R1 = ~limited_R1 & (open_R1 | (mass_RC[:, -1:] >= wanted_R1))
    floor_R1 = torch.maximum(floor_R1, min_p_R1 * falling_RC[:, :1])
    return floor_R1, reached_R1 | (top_k_R1 <= count)


def draw(weights_RV: Tensor, uniform_R1: Tensor) -> Tensor:
    """One token of each row, int64 ``[R]``: the first whose cumulated weight exceeds a share.

    Args:
        weights_RV: float32, none below 0; their sum need not be 1.
        uniform_R1: the share of it, float64 in [0, 1).
    """
    vocabulary = weights_RV.shape[1]
    main, rest = _chunks(weights_RV)
    sums = torch.cat((main.sum(-1), rest.sum(-1, keepdim=True)), dim=1)
    reached = sums.cumsum(-1, dtype=torch.float64)
    target_R1 = uniform_R1 * reached[:, -1:]
    chunk_R1 = torch.searchsorted(reached, target_R1, right=True).clamp_max_(sums.shape[1] - 1)
    size_R1 = sums.gather(1, chunk_R1).double()
    share_R1 = 1 - (reached.gather(1, chunk_R1) - target_R1) / size_R1

    ids = _chunk_ids(chunk_R1, vocabulary)
    repeated = ids.diff(prepend=ids[:, :1] - 1) == 0
    inner = weights_RV.gather(1, ids).masked_fill(repeated, 0).cumsum(-1, dtype=torch.float64)
    whole_R1 = inner[:, -1:]
    # Rounding must not carry the share to the end, behind which there is no token.
    below_R1 = torch.minimum(share_R1.clamp_min(0) * whole_R1, whole_R1.nextafter(whole_R1 * 0))
    place_R1 = torch.searchsorted(inner, below_R1, right=True).clamp_max_(_CHUNK - 1)
    return ids.gather(1, place_R1).squeeze(1)


def _chunks(x_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Whole chunks ``[R, n, _CHUNK]``, and the last one of 1 to ``_CHUNK`` tokens."""
    main = (x_RV.shape[1] - 1) // _CHUNK * _CHUNK
    return x_RV[:, :main].unflatten(1, (main // _CHUNK, _CHUNK)), x_RV[:, main:]


def _chunk_ids(chunk_R1: Tensor, vocabulary: int) -> Tensor:
    """The tokens ``[R, _CHUNK]`` of a chunk; in the last one, the last token repeats."""
    inner = torch.arange(_CHUNK, device=chunk_R1.device)
    return (chunk_R1 * _CHUNK + inner).clamp_max_(vocabulary - 1)
