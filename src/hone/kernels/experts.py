"""Mixture of experts: the choice of experts, their computation, the losses that spread the load.

Sources: Shazeer et al. 2017 (sparsely gated experts), Fedus et al. 2021 (Switch Transformer),
Zoph et al. 2022 (ST-MoE), Gale et al. 2022 (MegaBlocks: no token is dropped).

Shapes: N tokens, E hidden size, X experts, K experts per token, S = N · K slots ordered by expert,
C slots of one expert, F feed-forward size of one expert; gate and up lie side by side, gate first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from hone.kernels.linear import RowCounts, pad_rows

Activation = Callable[[Tensor], Tensor]


def route(
    logits_NX: Tensor, per_token: int, normalise: bool, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The ``per_token`` most probable experts of every token, most probable first.

    Returns their weights ``[N, K]`` in ``dtype`` and their numbers ``[N, K]``. Probabilities are a
    softmax in float32 over all experts; with ``normalise`` the K weights sum to one (Mixtral does,
    and keeps float32; Qwen and OLMoE round to the logits' dtype).
    """
    p_NX = torch.softmax(logits_NX, -1, dtype=torch.float32)
    weights_NK, experts_NK = p_NX.topk(per_token, dim=-1)
    if normalise:
        weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
    return weights_NK.to(dtype), experts_NK


def expert_mix_reference(
    x_NE: Tensor,
    weights_NK: Tensor,
    experts_NK: Tensor,
    gate_up_X2FE: Tensor,
    down_XEF: Tensor,
    activation: Activation = functional.silu,
) -> Tensor:
    """``Σₖ weightₖ · downₖ(activation(gateₖ(x)) · upₖ(x))``, with every expert on every token."""
    gate_XNF, up_XNF = (x_NE @ gate_up_X2FE.mT).chunk(2, dim=-1)
    out_XNE = (activation(gate_XNF) * up_XNF) @ down_XEF.mT
    row_N1 = torch.arange(len(x_NE), device=x_NE.device)[:, None]
    return (out_XNE[experts_NK, row_N1] * weights_NK[..., None]).sum(1).to(x_NE.dtype)


def expert_mix(
    x_NE: Tensor,
    weights_NK: Tensor,
    experts_NK: Tensor,
    gate_up_X2FE: Tensor,
    down_XEF: Tensor,
    activation: Activation = functional.silu,
    row_counts: RowCounts = (),
) -> Tensor:
    """See :func:`expert_mix_reference`; every expert computes only the tokens that chose it.

    A token's experts must differ from one another, as :func:`route` gives them. ``activation`` is
    applied to the gate. The sum over a token's experts has a fixed order; an expert that no token
    chose is not read, and its gradient is zero.

    Args:
        row_counts: without gradients, pads the rows of an expert, so that none depends on how many
            tokens chose it; see :func:`hone.kernels.linear.pad_rows`.
    """
    tensors = (x_NE, weights_NK, gate_up_X2FE, down_XEF)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        y_NE: Tensor = _ExpertMix.apply(
            x_NE, weights_NK, experts_NK, gate_up_X2FE, down_XEF, activation
        )
        return y_NE
    if len(x_NE) == 1 and not row_counts:
        return _mix_token(x_NE, weights_NK, experts_NK, gate_up_X2FE, down_XEF, activation)
    groups = _group(experts_NK, down_XEF.shape[0])
    return _mix(x_NE, weights_NK, groups, gate_up_X2FE, down_XEF, activation, None, row_counts)


def _mix_token(
    x_1E: Tensor,
    weights_1K: Tensor,
    experts_1K: Tensor,
    gate_up_X2FE: Tensor,
    down_XEF: Tensor,
    activation: Activation,
) -> Tensor:
    """The mixture of one token, as in decoding, with nothing to sort."""
    outs_1E = []
    for expert, weight in zip(experts_1K[0].tolist(), weights_1K[0], strict=True):
        gate_1F, up_1F = functional.linear(x_1E, gate_up_X2FE[expert]).chunk(2, dim=-1)
        outs_1E.append(functional.linear(activation(gate_1F) * up_1F, down_XEF[expert]) * weight)
    return torch.stack(outs_1E).sum(0)


class _Groups(NamedTuple):
    """The slots of all tokens, ordered by expert."""

    experts: list[int]  # those that have slots
    sizes: list[int]  # how many
    # Which of the N · K choices, counted in the tokens' order, a slot is.
    order_S: Tensor  # noqa: N815
    tokens: tuple[Tensor, ...]  # the tokens [C] of every expert in ``experts``
    slot_NK: Tensor  # noqa: N815 (the inverse of order_S)


def _group(experts_NK: Tensor, count: int) -> _Groups:
    """Sort the choices ``experts_NK`` of ``count`` experts."""
    experts_S = experts_NK.flatten()
    order_S = experts_S.argsort(stable=True)
    slot_S = torch.empty_like(order_S)
    slot_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    sizes = experts_S.bincount(minlength=count).tolist()
    experts = [expert for expert, size in enumerate(sizes) if size]
    sizes = [size for size in sizes if size]
    token_S = order_S.div(experts_NK.shape[1], rounding_mode="floor")
    return _Groups(experts, sizes, order_S, token_S.split(sizes), slot_S.view_as(experts_NK))


def _mix(
    x_NE: Tensor,
    weights_NK: Tensor,
    groups: _Groups,
    gate_up_X2FE: Tensor,
    down_XEF: Tensor,
    activation: Activation,
    kept_S2F: Tensor | None,
    row_counts: RowCounts = (),
) -> Tensor:
    """The mixture; the products with gate and up are written to ``kept_S2F`` if it is given."""
    sizes = groups.sizes
    weights_S1 = weights_NK.flatten()[groups.order_S, None]
    out_SE = x_NE.new_empty(len(groups.order_S), x_NE.shape[1])
    kept = [None] * len(sizes) if kept_S2F is None else kept_S2F.split(sizes)
    slices = zip(
        groups.experts,
        groups.tokens,
        weights_S1.split(sizes),
        out_SE.split(sizes),
        kept,
        strict=True,
    )
    for expert, token_C, weights_C1, out_CE, kept_C2F in slices:
        rows_CE = pad_rows(x_NE.index_select(0, token_C), row_counts)
        gate_up_C2F = torch.mm(rows_CE, gate_up_X2FE[expert].t(), out=kept_C2F)
        gate_CF, up_CF = gate_up_C2F.chunk(2, dim=-1)
        hidden_CF, down_FE = activation(gate_CF) * up_CF, down_XEF[expert].t()
        if len(rows_CE) == len(out_CE):
            torch.mm(hidden_CF, down_FE, out=out_CE).mul_(weights_C1)
        else:
            torch.mul(torch.mm(hidden_CF, down_FE)[: len(out_CE)], weights_C1, out=out_CE)
    return _sum_slots(out_SE, groups.slot_NK)


def _sum_slots(out_SE: Tensor, slot_NK: Tensor) -> Tensor:
    """The sum of the K slots of every token; unlike ``index_add`` always in the same order."""
    return functional.embedding_bag(slot_NK, out_SE, mode="sum")


class _ExpertMix(torch.autograd.Function):
    """Keeps one ``[S, 2F]`` tensor and recomputes what is elementwise.

    Autograd's own loop would add a gradient as large as all experts together for each of them.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_NE: Tensor,
        weights_NK: Tensor,
        experts_NK: Tensor,
        gate_up_X2FE: Tensor,
        down_XEF: Tensor,
        activation: Activation,
    ) -> Tensor:
        groups = _group(experts_NK, down_XEF.shape[0])
        kept_S2F = x_NE.new_empty(len(groups.order_S), gate_up_X2FE.shape[1])
        ctx.save_for_backward(x_NE, weights_NK, gate_up_X2FE, down_XEF, kept_S2F)
        ctx.groups, ctx.activation = groups, activation  # type: ignore[attr-defined]
        return _mix(x_NE, weights_NK, groups, gate_up_X2FE, down_XEF, activation, kept_S2F)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_NE: Tensor) -> tuple[Tensor | None, ...]:
        x_NE, weights_NK, gate_up_X2FE, down_XEF, kept_S2F = ctx.saved_tensors  # type: ignore[attr-defined]
        want_x, want_weights, _, want_gate_up, want_down, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        groups: _Groups = ctx.groups  # type: ignore[attr-defined]
        sizes = groups.sizes
        weights_S = weights_NK.flatten()[groups.order_S]
        dweights_S = torch.empty_like(weights_S)
        dx_SE = x_NE.new_empty(len(weights_S), x_NE.shape[1]) if want_x else None
        dgate_up_X2FE = _gradient_of(gate_up_X2FE, groups) if want_gate_up else None
        ddown_XEF = _gradient_of(down_XEF, groups) if want_down else None
        slices = zip(
            groups.experts,
            groups.tokens,
            weights_S[:, None].split(sizes),
            dweights_S.split(sizes),
            kept_S2F.split(sizes),
            [None] * len(sizes) if dx_SE is None else dx_SE.split(sizes),
            strict=True,
        )
        for expert, token_C, weights_C1, dweights_C, kept_C2F, dx_CE in slices:
            gate_CF, up_CF = kept_C2F.chunk(2, dim=-1)
            with torch.enable_grad():
                gate_CF = gate_CF.detach().requires_grad_()
                active_CF = ctx.activation(gate_CF)  # type: ignore[attr-defined]
            opened_CF = active_CF.detach()
            hidden_CF = opened_CF * up_CF
            grad_CE = grad_NE.index_select(0, token_C)
            # Not weighted yet: its product with the hidden values is the weights' own gradient,
            # for which the experts' outputs would have to be kept otherwise.
            dhidden_CF = grad_CE @ down_XEF[expert]
            if want_weights:
                torch.sum(dhidden_CF * hidden_CF, -1, dtype=dweights_C.dtype, out=dweights_C)
            if ddown_XEF is not None:
                torch.mm(grad_CE.t(), hidden_CF.mul_(weights_C1), out=ddown_XEF[expert])
            if dx_CE is None and dgate_up_X2FE is None:
                continue
            dhidden_CF.mul_(weights_C1)
            (dgate_CF,) = torch.autograd.grad(active_CF, gate_CF, dhidden_CF * up_CF)
            dgate_up_C2F = torch.cat((dgate_CF, dhidden_CF.mul_(opened_CF)), dim=-1)
            if dgate_up_X2FE is not None:
                rows_CE = x_NE.index_select(0, token_C)
                torch.mm(dgate_up_C2F.t(), rows_CE, out=dgate_up_X2FE[expert])
            if dx_CE is not None:
                torch.mm(dgate_up_C2F, gate_up_X2FE[expert], out=dx_CE)
        return (
            None if dx_SE is None else _sum_slots(dx_SE, groups.slot_NK),
            dweights_S[groups.slot_NK] if want_weights else None,
            None,
            dgate_up_X2FE,
            ddown_XEF,
            None,
        )


def _gradient_of(weight: Tensor, groups: _Groups) -> Tensor:
    """Memory for the gradient of all experts' ``weight``; zero for those without a slot."""
    gradient = torch.empty_like(weight)
    for expert in set(range(len(weight))).difference(groups.experts):
        gradient[expert].zero_()
    return gradient


def load_balancing_loss(
    router_logits: Sequence[Tensor], per_token: int, mask_N: Tensor | None = None
) -> Tensor:
    """``X · Σₓ fₓ · Pₓ`` (Fedus et al. 2021, equations 4 to 6), in float32.

    ``router_logits`` holds ``[N, X]`` of every layer; the tokens of all layers count as one batch.
    ``fₓ`` is how many of a token's K choices fall on expert x, on average, and ``Pₓ`` its mean
    probability: even routing gives K. Tokens where ``mask_N`` is false are left out; with none left
    the loss is zero.
    """
    logits_NX = torch.cat(list(router_logits))
    p_NX = torch.softmax(logits_NX, -1, dtype=torch.float32)
    keep_N1 = _kept(router_logits, mask_N)
    chosen_NX = torch.zeros_like(p_NX).scatter_(1, p_NX.topk(per_token).indices, 1.0)
    rows = keep_N1.sum().clamp(min=1.0)
    f_X, p_X = (chosen_NX * keep_N1).sum(0) / rows, (p_NX * keep_N1).sum(0) / rows
    return logits_NX.shape[1] * (f_X * p_X).sum()


def router_z_loss(router_logits: Sequence[Tensor], mask_N: Tensor | None = None) -> Tensor:
    """The mean over tokens and layers of ``log(Σ exp(logits))²`` (Zoph et al. 2022, equation 5).

    In float32; arguments as in :func:`load_balancing_loss`.
    """
    keep_N1 = _kept(router_logits, mask_N)
    z_N1 = torch.cat(list(router_logits)).float().logsumexp(-1, keepdim=True)
    return (z_N1.square() * keep_N1).sum() / keep_N1.sum().clamp(min=1.0)


def _kept(router_logits: Sequence[Tensor], mask_N: Tensor | None) -> Tensor:
    """One for every token of every layer that counts, ``[layers · N, 1]`` in float32."""
    first = router_logits[0]
    if mask_N is None:
        mask_N = first.new_ones(len(first))
    return mask_N.flatten().to(torch.float32).repeat(len(router_logits))[:, None]
