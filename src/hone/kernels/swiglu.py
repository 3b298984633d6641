"""The gated activation of the feed-forward layer (Shazeer 2020, "GLU Variants", equation 6).

Shapes: N rows, F feed-forward size; gate and up lie side by side, as one product wrote them.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional


def swiglu_reference(gate_up_N2F: Tensor) -> Tensor:
    """``silu(gate) · up``."""
    gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
    return functional.silu(gate_NF) * up_NF


def swiglu(gate_up_N2F: Tensor) -> Tensor:
    """See :func:`swiglu_reference`; keeps its input only, and recomputes in the backward pass."""
    if torch.is_grad_enabled() and gate_up_N2F.requires_grad:
        out_NF: Tensor = _SwiGLU.apply(gate_up_N2F)
        return out_NF
    gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
    return functional.silu(gate_NF).mul_(up_NF)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_up_N2F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_N2F)
        gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
        return functional.silu(gate_NF).mul_(up_NF)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_NF: Tensor) -> Tensor:
        (gate_up_N2F,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
        # Both halves are written into one tensor: the product's gradient reads them as one.
        out_N2F = torch.empty_like(gate_up_N2F)
        dgate_NF, dup_NF = out_N2F.chunk(2, dim=-1)
        scratch_NF = functional.silu(gate_NF)
        torch.mul(grad_NF, scratch_NF, out=dup_NF)
        torch.mul(grad_NF, up_NF, out=scratch_NF)
        torch.ops.aten.silu_backward.grad_input(scratch_NF, gate_NF, grad_input=dgate_NF)
        return out_N2F
