"""Root mean square normalisation (Zhang and Sennrich 2019, section 4).

Shapes: N rows, E hidden size.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def rms_norm_reference(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension; the mean is in float32."""
    x_fp32 = x_NE.float()
    scale = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)
    return weight_E * (x_fp32 * scale).to(x_NE.dtype)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """See :func:`rms_norm_reference`."""
    if torch.is_grad_enabled() and (x_NE.requires_grad or weight_E.requires_grad):
        normed: Tensor = _RMSNorm.apply(x_NE, weight_E, eps)
        return normed
    return _normalise(x_NE, weight_E, eps)[0]


def _normalise(x_NE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and the float32 factor ``[N, 1]`` of each."""
    norm_N1 = torch.linalg.vector_norm(x_NE, dim=-1, keepdim=True, dtype=torch.float32)
    scale_N1 = norm_N1.square_().div_(x_NE.shape[-1]).add_(eps).rsqrt_()
    return (x_NE.float() * scale_N1).to(x_NE.dtype).mul_(weight_E), scale_N1


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        normed_NE, scale_N1 = _normalise(x_NE, weight_E, eps)
        ctx.save_for_backward(x_NE, weight_E, scale_N1)
        return normed_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_NE: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NE, weight_E, scale_N1 = ctx.saved_tensors  # type: ignore[attr-defined]
        shape, size = x_NE.shape, x_NE.shape[-1]
        x, grad = x_NE.reshape(-1, size).float(), grad_NE.reshape(-1, size).float()
        scale, weight = scale_N1.reshape(-1, 1), weight_E.float()
        # Both reductions of grad · x are matrix-vector products, so it is read only twice.
        both = grad * x
        dweight_E = torch.mv(both.t(), scale[:, 0])
        pull_N1 = torch.mv(both, weight)[:, None] * scale.pow(3).div_(size)
        dx = torch.mul(grad, weight, out=both).mul_(scale).addcmul_(x, pull_N1, value=-1)
        return dx.to(x_NE.dtype).view(shape), dweight_E.to(weight_E.dtype), None
