"""Vocabulary projection and cross-entropy without ever holding all logits.

Shapes: N rows, C rows of one chunk, E hidden size, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# One chunk of float32 logits; a few of these stay in a processor's last cache.
_CHUNK_BYTES = 8 << 20


def projected_cross_entropy_reference(
    hidden_NE: Tensor, weight_VE: Tensor, labels_N: Tensor
) -> Tensor:
    """The sum over rows of ``-log softmax(hidden · weightᵀ)[label]``, in float32."""
    logits_NV = functional.linear(hidden_NE, weight_VE).float()
    return functional.cross_entropy(logits_NV, labels_N, reduction="sum")


def projected_cross_entropy(hidden_NE: Tensor, weight_VE: Tensor, labels_N: Tensor) -> Tensor:
    """See :func:`projected_cross_entropy_reference`.

    Gradients are computed along with the loss, chunk by chunk, so that the logits are made once
    and no more than one chunk of them exists (as in Liger Kernel, Hsu et al. 2024, section 3.2).
    """
    loss: Tensor = _ProjectedCrossEntropy.apply(hidden_NE, weight_VE, labels_N)
    return loss


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden_NE: Tensor, weight_VE: Tensor, labels_N: Tensor) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        rows = max(1, _CHUNK_BYTES // (4 * weight_VE.shape[0]))
        loss = hidden_NE.new_zeros((), dtype=torch.float32)
        dhidden_NE = torch.empty_like(hidden_NE) if need_hidden else None
        # Summed over chunks in float32: bfloat16 would lose what later chunks add.
        dweight_VE = torch.zeros_like(weight_VE, dtype=torch.float32) if need_weight else None
        for start in range(0, hidden_NE.shape[0], rows):
            hidden_CE = hidden_NE[start : start + rows]
            label_C1 = labels_N[start : start + rows, None]
            logits_CV = functional.linear(hidden_CE, weight_VE).float()
            picked_C1 = logits_CV.gather(1, label_C1)
            top_C1 = logits_CV.amax(-1, keepdim=True)
            p_CV = torch.softmax(logits_CV, -1)
            # The largest probability is 1 / Σ exp(logit - top), which never underflows.
            loss += ((top_C1 - picked_C1) - p_CV.amax(-1, keepdim=True).log()).sum()
            p_CV.scatter_add_(1, label_C1, p_CV.new_full(label_C1.shape, -1.0))
            p_CV = p_CV.to(hidden_NE.dtype)
            if dhidden_NE is not None:
                torch.mm(p_CV, weight_VE, out=dhidden_NE[start : start + rows])
            if dweight_VE is not None and p_CV.dtype == torch.float32:
                dweight_VE.addmm_(p_CV.t(), hidden_CE)
            elif dweight_VE is not None:
                dweight_VE += p_CV.t() @ hidden_CE
        if dweight_VE is not None:
            dweight_VE = dweight_VE.to(weight_VE.dtype)
        ctx.gradients = (dhidden_NE, dweight_VE)  # type: ignore[attr-defined]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dhidden_NE, dweight_VE = ctx.gradients  # type: ignore[attr-defined]
        return (
            None if dhidden_NE is None else dhidden_NE * grad.to(dhidden_NE.dtype),
            None if dweight_VE is None else dweight_VE * grad.to(dweight_VE.dtype),
            None,
        )
