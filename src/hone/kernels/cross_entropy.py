"""Vocabulary projection and cross-entropy without ever holding all logits.

Shapes: N rows, C rows of one chunk, E hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# One chunk of float32 logits; a few of these stay in a processor's last cache.
_CHUNK_BYTES = 8 << 20
# So many rows at least, however large the vocabulary: products of fewer are slow (with 32,000
# tokens, 256 rows take 14% less time than 65), and a quantized layer unpacks its weights for each.
_FEWEST_ROWS = 256


def projected_cross_entropy_reference(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The sum over rows of ``-log softmax(hidden · weightᵀ + bias)[label]``, in float32.

    With ``softcap`` the logits are ``cap · tanh(logits / cap)`` (Gemma 2, section 2).
    """
    logits_NV = functional.linear(hidden_NE, weight_VE, bias_V)
    if softcap is not None:
        logits_NV = (logits_NV / softcap).tanh() * softcap
    return functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def projected_cross_entropy(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See :func:`projected_cross_entropy_reference`.

    Gradients are computed along with the loss, chunk by chunk, so that the logits are made once
    and no more than one chunk of them exists (as in Liger Kernel, Hsu et al. 2024, section 3.2).
    The backward pass can run once.
    """
    loss: Tensor = _ProjectedCrossEntropy.apply(
        hidden_NE, weight_VE, bias_V, labels_N, softcap, torch.is_grad_enabled()
    )
    return loss


def scored_cross_entropy(
    hidden_NE: Tensor,
    labels_N: Tensor,
    scores: Callable[[Tensor], Tensor],
    weights: Iterable[Tensor],
    vocabulary: int,
) -> Tensor:
    """``cross_entropy(scores(hidden), labels)``, summed, in float32, for any output layer.

    Chunk by chunk as in :func:`projected_cross_entropy`, with autograd inside of each chunk.

    Args:
        scores: from ``[C, E]`` to logits ``[C, V]``, each row by itself.
        weights: what ``scores`` reads; those that require gradients get them.
        vocabulary: V.
    """
    rows = max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * vocabulary))
    trained = [weight for weight in weights if weight.requires_grad]
    loss: Tensor = _ScoredCrossEntropy.apply(
        hidden_NE, labels_N, scores, rows, torch.is_grad_enabled(), *trained
    )
    return loss


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        softcap: float | None,
        differentiate: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        need_hidden, need_weight, need_bias = (differentiate and want for want in wanted)
        rows = max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * weight_VE.shape[0]))
        loss = hidden_NE.new_zeros((), dtype=torch.float32)
        dhidden_NE = torch.empty_like(hidden_NE) if need_hidden else None
        # Summed over chunks in float32: bfloat16 would lose what later chunks add.
        dweight_VE = torch.zeros_like(weight_VE, dtype=torch.float32) if need_weight else None
        dbias_V = None
        if bias_V is not None and need_bias:
            dbias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        for start in range(0, hidden_NE.shape[0], rows):
            hidden_CE = hidden_NE[start : start + rows]
            label_C1 = labels_N[start : start + rows, None]
            logits_CV = functional.linear(hidden_CE, weight_VE, bias_V)
            if softcap is not None:
                squashed_CV = logits_CV.div_(softcap).tanh_()
                logits_CV = squashed_CV * softcap
            logits_CV = logits_CV.float()
            picked_C1 = logits_CV.gather(1, label_C1)
            top_C1 = logits_CV.amax(-1, keepdim=True)
            p_CV = torch.softmax(logits_CV, -1)
            # The largest probability is 1 / Σ exp(logit - top), which never underflows.
            loss += ((top_C1 - picked_C1) - p_CV.amax(-1, keepdim=True).log()).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            p_CV.scatter_add_(1, label_C1, p_CV.new_full(label_C1.shape, -1.0))
            if softcap is not None:  # the derivative of tanh is 1 - tanh²
                p_CV.addcmul_(p_CV, squashed_CV.float().square_(), value=-1)
            if dbias_V is not None:
                dbias_V += p_CV.sum(0)
            p_CV = p_CV.to(hidden_NE.dtype)
            if dhidden_NE is not None:
                torch.mm(p_CV, weight_VE, out=dhidden_NE[start : start + rows])
            if dweight_VE is not None and p_CV.dtype == torch.float32:
                dweight_VE.addmm_(p_CV.t(), hidden_CE)
            elif dweight_VE is not None:
                dweight_VE += p_CV.t() @ hidden_CE
            del logits_CV, p_CV  # the next chunk takes their place, in the cache too
        gradients = (
            dhidden_NE,
            None if dweight_VE is None else dweight_VE.to(weight_VE.dtype),
            None if bias_V is None or dbias_V is None else dbias_V.to(bias_V.dtype),
        )
        ctx.gradients = gradients  # type: ignore[attr-defined]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled_gradients(ctx, grad), None, None, None


class _ScoredCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NE: Tensor,
        labels_N: Tensor,
        scores: Callable[[Tensor], Tensor],
        rows: int,
        differentiate: bool,
        *weights: Tensor,
    ) -> Tensor:
        need_hidden = differentiate and ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        trained = weights if differentiate else ()
        loss = hidden_NE.new_zeros((), dtype=torch.float32)
        dhidden_NE = torch.empty_like(hidden_NE) if need_hidden else None
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        for start in range(0, hidden_NE.shape[0], rows):
            chunk = slice(start, start + rows)
            hidden_CE = hidden_NE[chunk].detach().requires_grad_(need_hidden)
            with torch.set_grad_enabled(need_hidden or bool(trained)):
                logits_CV = scores(hidden_CE).float()
                part = functional.cross_entropy(logits_CV, labels_N[chunk], reduction="sum")
                del logits_CV
                of = (hidden_CE, *trained) if need_hidden else trained
                gradients = list(torch.autograd.grad(part, of, allow_unused=True)) if of else []
            loss += part.detach()
            if dhidden_NE is not None:
                dhidden_NE[chunk] = gradients.pop(0)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        sums = [total.to(weight.dtype) for total, weight in zip(sums, trained, strict=True)]
        ctx.gradients = (dhidden_NE, *sums)  # type: ignore[attr-defined]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        dhidden_NE, *dweights = _scaled_gradients(ctx, grad)
        return dhidden_NE, None, None, None, None, *dweights


def _scaled_gradients(ctx: FunctionCtx, grad: Tensor) -> list[Tensor | None]:
    """The gradients that the forward pass left, times that of the loss; in place, so only once."""
    gradients, ctx.gradients = ctx.gradients, None  # type: ignore[attr-defined]
    if gradients is None:
        raise RuntimeError("The backward pass of a chunked cross-entropy can run only once.")
    # ``grad`` stays float32: rounded to 16 bits it would be another loss, or infinite in float16.
    return [None if g is None else g.mul_(grad) for g in gradients]
