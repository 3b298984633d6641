"""Root mean square normalisation (Zhang and Sennrich 2019, section 4)."""

import torch
from torch import Tensor


def rms_norm_reference(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension; the mean is in float32."""
    x_fp32 = x_NE.float()
    scale = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return weight_E * (x_fp32 * scale).to(x_NE.dtype)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """See :func:`rms_norm_reference`."""
    return rms_norm_reference(x_NE, weight_E, eps)
