"""Rotary position embedding (Su et al. 2021, section 3.4.2), half-split as in Hugging Face files.

Shapes: N tokens, H heads, D head size.
"""

import torch
from torch import Tensor


def rotary_table(positions_N: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines and sines ``[2, N, D/2]`` for the given positions; angles are in float32."""
    angles = positions_N.float()[:, None] * frequencies.to(positions_N.device)[None, :]
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def apply_rotary(x_NHD: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair (i, i + R/2) of every head by its token's angle; the rest stays as it is.

    ``table`` is ``[2, N, R/2]`` for the first R of D dimensions. Training rotates inside
    ``packed_attention``, as a product of complex numbers.
    """
    cos, sin = table[:, :, None, :]
    rotated = 2 * table.shape[-1]
    first, second = x_NHD[..., :rotated].chunk(2, dim=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rotated < x_NHD.shape[-1]:
        parts.append(x_NHD[..., rotated:])
    return torch.cat(parts, dim=-1)
