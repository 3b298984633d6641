"""Blocks of float32 numbers as 8-bit codes (Dettmers et al. 2022, arxiv.org/abs/2110.02861).

A block is divided by its largest magnitude, and each number becomes the nearest entry of a dynamic
map: a decade of size, found by leading zeros of the code, shared out evenly by the bits that are
left. So numbers near the largest keep two digits, and numbers a million times smaller still count.

Shapes: P blocks, S numbers in a block (256).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256
_DECADES = 7
# A block of zeros is divided by this instead.
_TINY = torch.finfo(torch.float32).tiny


@cache
def dynamic_map(signed: bool) -> tuple[float, ...]:
    """The 256 values of the codes, ascending; those above 0 are for numbers without a sign.

    Decade i (from 0, the smallest) is cut into 2^i equal parts, twice as many without a sign; a
    code stands for the middle of its part. 0 and 1 have codes of their own.
    """
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        parts = 2**decade if signed else 2 ** (decade + 1)
        for part in range(parts):
            middle = (0.1 + 0.9 * (part + 0.5) / parts) * 10.0 ** (decade - _DECADES + 1)
            values += [middle, -middle] if signed else [middle]
    return tuple(sorted(values))


def quantize_reference(x_PS: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 ``[P, S]`` and scales float32 ``[P, 1]``; of two values as near, the lower."""
    scale_P1 = x_PS.abs().amax(dim=1, keepdim=True).clamp_min(_TINY)
    values = torch.tensor(dynamic_map(signed), device=x_PS.device)
    distances = (x_PS / scale_P1).double().unsqueeze(-1) - values.double()
    return distances.abs().argmin(dim=-1).to(torch.uint8), scale_P1


def quantize(x_PS: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The same codes as :func:`quantize_reference`, at a tenth of a binary search's time.

    The upper half of a number's bits finds the lower one of the two codes that can be nearest, and
    one comparison with the middle between them decides.
    """
    scale_P1 = x_PS.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY)
    x = (x_PS / scale_P1).view(-1)
    table = _table(signed, x_PS.device)
    upper = (x.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
    codes = table.lower.index_select(0, upper)
    below = table.middles.index_select(0, codes).sub_(x)
    codes -= below.view(torch.int32) >> 31  # -1 where the number is above the middle
    return codes.to(torch.uint8).view_as(x_PS), scale_P1


def dequantize(codes_PS: Tensor, scale_P1: Tensor, signed: bool) -> Tensor:
    """The float32 numbers ``[P, S]`` that the codes stand for."""
    values = _table(signed, codes_PS.device).values
    return values.index_select(0, codes_PS.view(-1).int()).view_as(codes_PS).mul_(scale_P1)


class _Table(NamedTuple):
    values: Tensor  # [256], of the codes
    middles: Tensor  # [256], between a code's value and the next one's
    lower: Tensor  # int32 [65536], by the upper 16 bits of a number: its code, or the one below it


@cache
def _table(signed: bool, device: torch.device) -> _Table:
    values = torch.tensor(dynamic_map(signed))
    exact = (values[:-1].double() + values[1:].double()) / 2
    middles = exact.float()
    # Rounded down, so that comparing float32 numbers decides as the exact middle would.
    down = torch.nextafter(middles, torch.full_like(middles, -1.0))
    middles = torch.where(middles.double() > exact, down, middles)
    # The numbers that share their upper bits lie between these two; NaN and what is above 1 in
    # magnitude do not occur.
    first = torch.arange(2**16, dtype=torch.int32) << 16
    ends = torch.stack([first, first | 0xFFFF]).view(torch.float32).nan_to_num().double()
    lower = torch.bucketize(ends, exact).amin(dim=0).int()
    middles = torch.cat([middles, middles.new_tensor([torch.inf])])
    return _Table(values.to(device), middles.to(device), lower.to(device))
