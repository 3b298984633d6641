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
    """Rotate each pair (i, i + D/2) of every head by its token's angle.

    Training rotates inside ``packed_attention``, as a product of complex numbers.
    """
    cos, sin = table[:, :, None, :]
    first, second = x_NHD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
