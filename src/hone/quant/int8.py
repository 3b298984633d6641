"""Symmetric int8 weights with one scale per output: ``w ≈ q · scale``, q in -127..127.

Shapes: M rows of activations, K inputs, N outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Of rows [M, K], codes [N, K], scales [N, 1] and a bias [N] or None: [M, N].
Product = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# Up to so many rows, reading int8 weights beats widening them for a float product (measured with
# 1024 × 2816 weights on AVX2: 1.1 to 4 times as fast as float32 up to 12 rows, slower from 16).
_PACKED_ROWS = 12
# PyTorch's kernel reads whole vectors: other numbers of inputs give wrong sums, or a crash.
_PACKED_INPUTS = 64
# Weights widened at a time (2 MB in float32): a block is still in the cache when it is multiplied.
_BLOCK = 2**19


def quantize_rows(weight_NK: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row to int8; returns ``q`` int8 ``[N, K]`` and ``scale`` ``[N, 1]``.

    The error of a weight is at most half a scale. Codes are computed with the scale as it is
    stored, so a short ``scale_dtype`` adds no error of its own.
    """
    weight_NK = weight_NK.float()
    exact_N1 = weight_NK.abs().amax(dim=1, keepdim=True) / 127
    scale_N1 = exact_N1.to(scale_dtype)
    # A scale that was rounded down would not reach the largest weight: take the next one up.
    short = scale_N1.float() < exact_N1
    scale_N1 = torch.where(short, torch.nextafter(scale_N1, scale_N1 + 1), scale_N1)
    scale_N1 = torch.where(exact_N1 == 0, torch.ones_like(scale_N1), scale_N1)
    codes = (weight_NK / scale_N1.float()).round().clamp(-127, 127)
    return codes.to(torch.int8), scale_N1


def int8_linear_reference(
    x_MK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """``x · (q · scale)ᵀ + bias`` as it is written, in the dtype of ``x``."""
    return functional.linear(x_MK, weight_NK.to(x_MK.dtype) * scale_N1.to(x_MK.dtype), bias_N)


def int8_linear(
    x_MK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """See :func:`int8_linear_reference`; the scale is applied after the sum over K.

    On a CPU, a few rows are multiplied by the codes themselves, in bfloat16 with float32 sums.
    """
    rows, inputs = x_MK.shape
    if x_MK.device.type == "cpu" and rows <= _PACKED_ROWS and inputs % _PACKED_INPUTS == 0:
        # The product is only fast for bfloat16 (18 GB/s; for float32, under 1).
        x_bf16, scale_N = x_MK.bfloat16().contiguous(), scale_N1.bfloat16().squeeze(1)
        y_MN = torch._weight_int8pack_mm(x_bf16, weight_NK, scale_N).to(x_MK.dtype)
    else:
        scale_N = scale_N1.to(x_MK.dtype).squeeze(1)
        blocks = weight_NK.split(max(1, _BLOCK // inputs))
        parts = [functional.linear(x_MK, block.to(x_MK.dtype)) for block in blocks]
        y_MN = torch.cat(parts, dim=-1) * scale_N
    return y_MN if bias_N is None else y_MN + bias_N


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; stands where an ``nn.Linear`` stood.

    State: ``weight`` int8 ``[N, K]``, ``weight_scale`` ``[N, 1]``, and ``bias`` ``[N]`` or None.

    Attributes:
        product: :func:`int8_linear`, or another way to multiply.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        dtype: torch.dtype = torch.float32,
        widen: bool = False,
    ) -> None:
        """Allocate on the default device.

        Args:
            dtype: of the scale and the bias.
            widen: on a CPU, keep a copy of the weights in the dtype of the activations. Faster
                where all of a model's weights stay in the processor's cache.
        """
        super().__init__()
        self.widen = widen
        self.product: Product = int8_linear
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(outputs, 1, dtype=dtype))
        self.register_buffer("bias", torch.empty(outputs, dtype=dtype) if bias else None)
        self._widened: tuple[Tensor, Tensor] | None = None  # of which weight, and the copy

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]`` in the dtype of ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            product: Tensor = _FrozenProduct.apply(x, self)
            return product
        return self.base_forward(x)

    def base_forward(self, x: Tensor) -> Tensor:
        """:meth:`forward` inside another function's: without a graph."""
        if self.widen and self.product is int8_linear and x.device.type == "cpu":
            return functional.linear(x, self._wide(x.dtype), self.bias)
        x_MK = x.reshape(-1, self.in_features)
        y_MN = self.product(x_MK, self.weight, self.weight_scale, self.bias)
        return y_MN.view(*x.shape[:-1], self.out_features)

    def base_backward(self, grad: Tensor) -> Tensor:
        """The gradient of :meth:`base_forward` by ``x``."""
        return grad @ self.dequantize(grad.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[N, K]``, rounded once to ``dtype``."""
        return (self.weight.float() * self.weight_scale.float()).to(dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._widened = None  # the codes may be overwritten in place
        super()._load_from_state_dict(*args, **kwargs)

    def _wide(self, dtype: torch.dtype) -> Tensor:
        kept = self._widened
        if kept is None or kept[0] is not self.weight or kept[1].dtype != dtype:
            # A copy made in inference mode could not be used with gradients later.
            with torch.inference_mode(False), torch.no_grad():
                wide = self.weight.to(dtype) * self.weight_scale.to(dtype)
            kept = self._widened = (self.weight, wide)
        return kept[1]


class _FrozenProduct(torch.autograd.Function):
    """The product of a layer whose weights get no gradient; keeps nothing for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return layer.base_forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.base_backward(grad), None
