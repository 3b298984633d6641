"""The scan of Mamba-2 as matrix products: state space duality (Dao and Gu 2024, section 6).

A state space model whose transition is one number per head is a masked attention: inside a chunk
outputs come from L x L matrices of scores and decays, between chunks from one state each.

    h[t] = exp(dt[t] A) h[t - 1] + dt[t] B[t] x[t]ᵀ        y[t] = C[t]ᵀ h[t] + D x[t]

Shapes: N tokens of n sequences, H heads of size P, G groups of heads that share B and C, S state
size; L tokens of one chunk; J = H / G, F = J P, the columns of a group's state.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def state_space_dual_reference(
    x_NHP: Tensor,
    dt_NH: Tensor,
    A_H: Tensor,
    B_NGS: Tensor,
    C_NGS: Tensor,
    D_H: Tensor | None,
    bounds: Sequence[int],
    state_nHPS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token, in float32 (or float64 where ``x_NHP`` is).

    Args:
        x_NHP: the inputs.
        dt_NH: the step sizes, after softplus and its limits.
        A_H: the continuous transition of each head, negative.
        B_NGS: how a token enters the state.
        C_NGS: how the state is read.
        D_H: what passes by the state; None means nothing.
        bounds: where sequences begin and end: n + 1 ascending numbers from 0 to N.
        state_nHPS: each sequence's state before its first token; None means zeros.

    Returns:
        The outputs ``[N, H, P]`` in the type of ``x_NHP``, and the states ``[n, H, P, S]`` after
        each sequence's last token in the type of the arithmetic.
    """
    dtype = torch.promote_types(x_NHP.dtype, torch.float32)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in (x_NHP, dt_NH, A_H, B_NGS, C_NGS))
    heads = x.shape[1] // B.shape[1]
    B_NHS, C_NHS = B.repeat_interleave(heads, 1), C.repeat_interleave(heads, 1)
    outputs, states = [], []
    for i, (start, end) in enumerate(pairwise(bounds)):
        h_HPS = x.new_zeros(*x.shape[1:], B.shape[2])
        if state_nHPS is not None:
            h_HPS = state_nHPS[i].to(dtype)
        for t in range(start, end):
            entering_HPS = (dt[t, :, None] * x[t])[:, :, None] * B_NHS[t, :, None]
            h_HPS = torch.exp(dt[t] * A)[:, None, None] * h_HPS + entering_HPS
            outputs.append((h_HPS @ C_NHS[t, :, :, None])[:, :, 0])
        states.append(h_HPS)
    y_NHP = torch.stack(outputs) if outputs else torch.zeros_like(x)
    if D_H is not None:
        y_NHP = y_NHP + x * D_H[:, None]
    return y_NHP.to(x_NHP.dtype), torch.stack(states)


def state_space_dual(
    x_NHP: Tensor,
    dt_NH: Tensor,
    A_H: Tensor,
    B_NGS: Tensor,
    C_NGS: Tensor,
    D_H: Tensor | None,
    bounds: Sequence[int],
    state_nHPS: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """See :func:`state_space_dual_reference`.

    Args:
        chunk: L; a matter of speed, not of the result.
    """
    dtype = torch.promote_types(x_NHP.dtype, torch.float32)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in (x_NHP, dt_NH, A_H, B_NGS, C_NGS))
    state = None if state_nHPS is None else state_nHPS.to(dtype)
    if list(bounds) == list(range(len(x) + 1)):
        y_NHP, state = _one_token_each(x, dt, A, B, C, state)
    else:
        y_NHP, state = _StateSpaceDual.apply(x, dt, A, B, C, state, tuple(bounds), chunk)
    if D_H is not None:
        y_NHP = torch.addcmul(y_NHP, x, D_H.to(dtype)[:, None])
    return y_NHP.to(x_NHP.dtype), state


def _one_token_each(
    x_nHP: Tensor,
    dt_nH: Tensor,
    A_H: Tensor,
    B_nGS: Tensor,
    C_nGS: Tensor,
    h_nHPS: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of every sequence: decoding."""
    groups = B_nGS.shape[1]
    entering_nGF1 = (dt_nH[:, :, None] * x_nHP).view(len(x_nHP), groups, -1, 1)
    new_nGFS = entering_nGF1 * B_nGS[:, :, None]
    if h_nHPS is not None:
        decay_nH11 = torch.exp(dt_nH * A_H)[:, :, None, None]
        new_nGFS = torch.addcmul(new_nGFS.view(h_nHPS.shape), decay_nH11, h_nHPS).view_as(new_nGFS)
    y_nGF1 = new_nGFS @ C_nGS[:, :, :, None]
    return y_nGF1.view(x_nHP.shape), new_nGFS.view(*x_nHP.shape, -1)


class _Chunk(NamedTuple):
    """What the tokens of one chunk do to one another and to the state."""

    entering: Tensor  # dt x [L, H, P]
    scores: Tensor  # C Bᵀ [G, L, L]
    decay: Tensor  # [H, L, L] from the token in the column to that in the row, zero to the past
    mixing: Tensor  # [H, L, L] from what enters to the outputs: decay times scores (section 3.1)
    since: Tensor  # [L, H, 1] decay since the state before the chunk
    until: Tensor  # [L, H, 1] decay until the state after it
    through: Tensor  # [G, 1, J, 1] decay from one to the other


def _chunk(x_LHP: Tensor, dt_LH: Tensor, A_H: Tensor, B_LGS: Tensor, C_LGS: Tensor) -> _Chunk:
    # In float64: a difference of long sums has their error, and decays multiply it.
    sum_LH = (dt_LH * A_H).cumsum(0, dtype=torch.float64)
    sum_HL = sum_LH.t()
    decay_HLL = (sum_HL[:, :, None] - sum_HL[:, None, :]).to(x_LHP.dtype)
    future_LL = torch.ones_like(decay_HLL[0], dtype=torch.bool).triu_(1)
    decay_HLL.masked_fill_(future_LL, -torch.inf).exp_()
    scores_GLL = torch.bmm(C_LGS.transpose(0, 1), B_LGS.permute(1, 2, 0))
    decay_GJLL = decay_HLL.unflatten(0, (len(scores_GLL), -1))
    since_LH1 = sum_LH.exp().to(x_LHP.dtype)[:, :, None]
    return _Chunk(
        entering=x_LHP * dt_LH[:, :, None],
        scores=scores_GLL,
        decay=decay_HLL,
        mixing=(decay_GJLL * scores_GLL[:, None]).flatten(0, 1),
        since=since_LH1,
        until=(sum_LH[-1] - sum_LH).exp().to(x_LHP.dtype)[:, :, None],
        through=since_LH1[-1].view(len(scores_GLL), 1, -1, 1),
    )


def _by_group(x_LHP: Tensor, groups: int) -> Tensor:
    """``[L, H, P]`` as ``[G, L, F]``."""
    return x_LHP.reshape(len(x_LHP), groups, -1).transpose(0, 1)


def _by_token(x_GLF: Tensor, like_LHP: Tensor) -> Tensor:
    """``[G, L, F]`` as ``[L, H, P]``."""
    return x_GLF.transpose(0, 1).reshape(like_LHP.shape)


def _chunks(bounds: Sequence[int], chunk: int) -> Iterator[tuple[int, slice]]:
    """Each chunk's sequence and tokens; none reaches over a sequence's end."""
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        for first in range(start, end, chunk):
            yield sequence, slice(first, min(first + chunk, end))


class _StateSpaceDual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_NHP: Tensor,
        dt_NH: Tensor,
        A_H: Tensor,
        B_NGS: Tensor,
        C_NGS: Tensor,
        state_nHPS: Tensor | None,
        bounds: tuple[int, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        _, groups, size = B_NGS.shape
        _, heads, width = x_NHP.shape
        y_NHP = torch.empty_like(x_NHP)
        # Inside, a state is [G, S, F]: all heads of a group in one product.
        shape = (len(bounds) - 1, groups, size, heads // groups, width)
        h_nGSJP = x_NHP.new_zeros(shape)
        if state_nHPS is not None:
            h_nGSJP.copy_(state_nHPS.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3))
        h_nGSF = h_nGSJP.flatten(3)
        before = []
        for sequence, tokens in _chunks(bounds, chunk):
            h_GSF = h_nGSF[sequence]
            before.append(h_GSF.clone())
            x_LHP, B_LGS, C_LGS = x_NHP[tokens], B_NGS[tokens], C_NGS[tokens]
            c = _chunk(x_LHP, dt_NH[tokens], A_H, B_LGS, C_LGS)
            inside_HLP = torch.bmm(c.mixing, c.entering.transpose(0, 1))
            carried_LHP = _by_token(torch.bmm(C_LGS.transpose(0, 1), h_GSF), x_LHP)
            torch.addcmul(inside_HLP.transpose(0, 1), carried_LHP, c.since, out=y_NHP[tokens])
            h_nGSJP[sequence].mul_(c.through)
            h_GSF.baddbmm_(B_LGS.permute(1, 2, 0), _by_group(c.entering * c.until, groups))
        ctx.save_for_backward(x_NHP, dt_NH, A_H, B_NGS, C_NGS, *before)
        ctx.plan = (bounds, chunk)  # type: ignore[attr-defined]
        return y_NHP, h_nGSJP.permute(0, 1, 3, 4, 2).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_NHP: Tensor, dh_nHPS: Tensor) -> tuple[Tensor | None, ...]:
        x_NHP, dt_NH, A_H, B_NGS, C_NGS, *before = ctx.saved_tensors  # type: ignore[attr-defined]
        bounds, chunk = ctx.plan  # type: ignore[attr-defined]
        groups = B_NGS.shape[1]
        dx_NHP, ddt_NH, dA_H = torch.empty_like(x_NHP), torch.empty_like(dt_NH), 0 * A_H
        dB_NGS, dC_NGS = torch.empty_like(B_NGS), torch.empty_like(C_NGS)
        dh_nGSJP = dh_nHPS.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).contiguous()
        dh_nGSF = dh_nGSJP.flatten(3)
        for (sequence, tokens), h_GSF in reversed(
            [*zip(_chunks(bounds, chunk), before, strict=True)]
        ):
            x_LHP, dt_LH, B_LGS, C_LGS = x_NHP[tokens], dt_NH[tokens], B_NGS[tokens], C_NGS[tokens]
            dy_LHP, dh_GSF, dh_GSJP = dy_NHP[tokens], dh_nGSF[sequence], dh_nGSJP[sequence]
            c = _chunk(x_LHP, dt_LH, A_H, B_LGS, C_LGS)
            mixing_HLL, dy_HLP = c.mixing, dy_LHP.transpose(0, 1)
            # Through the products inside the chunk.
            dmixing_HLL = torch.bmm(dy_HLP, c.entering.permute(1, 2, 0))
            dinside_LHP = torch.bmm(mixing_HLL.transpose(1, 2), dy_HLP).transpose(0, 1)
            dscores_GLL = (dmixing_HLL * c.decay).unflatten(0, (groups, -1)).sum(1)
            # Through the state before the chunk.
            carried_LHP = _by_token(torch.bmm(C_LGS.transpose(0, 1), h_GSF), x_LHP)
            dcarried_LHP = dy_LHP * c.since
            dcarried_GLF = _by_group(dcarried_LHP, groups)
            # Through the state after it.
            leaving_LHP = c.entering * c.until
            dleaving_LHP = _by_token(torch.bmm(B_LGS.transpose(0, 1), dh_GSF), x_LHP)
            dentering_LHP = torch.addcmul(dinside_LHP, dleaving_LHP, c.until)
            dC_GLS = torch.bmm(dscores_GLL, B_LGS.transpose(0, 1))
            dC_GLS.baddbmm_(dcarried_GLF, h_GSF.transpose(1, 2))
            dB_GLS = torch.bmm(dscores_GLL.transpose(1, 2), C_LGS.transpose(0, 1))
            dB_GLS.baddbmm_(_by_group(leaving_LHP, groups), dh_GSF.transpose(1, 2))
            dC_NGS[tokens], dB_NGS[tokens] = dC_GLS.transpose(0, 1), dB_GLS.transpose(0, 1)
            # Each token's decay lies on every way from before it to it or after it: inside the
            # chunk, from the state before, to the state after, and from one to the other.
            dlog_LH = _crossing(dmixing_HLL.mul_(mixing_HLL)).t()
            dlog_LH = dlog_LH + (dcarried_LHP * carried_LHP).sum(-1).flip(0).cumsum(0).flip(0)
            dlog_LH[1:] += (leaving_LHP * dleaving_LHP).sum(-1).cumsum(0)[:-1]
            dh_GSJP.mul_(c.through)
            h_GSJP = h_GSF.view_as(dh_GSJP)
            dlog_LH += (dh_GSJP * h_GSJP).sum((1, 3)).flatten()
            dh_GSF.baddbmm_(C_LGS.permute(1, 2, 0), dcarried_GLF)
            dx_NHP[tokens] = dentering_LHP * dt_LH[:, :, None]
            ddt_NH[tokens] = dlog_LH * A_H + (dentering_LHP * x_LHP).sum(-1)
            dA_H += (dlog_LH * dt_LH).sum(0)
        dstate_nHPS = None
        if ctx.needs_input_grad[5]:  # type: ignore[attr-defined]
            dstate_nHPS = dh_nGSJP.permute(0, 1, 3, 4, 2).flatten(1, 2)
        return dx_NHP, ddt_NH, dA_H, dB_NGS, dC_NGS, dstate_nHPS, None, None


def _crossing(flow_HLL: Tensor) -> Tensor:
    """For each token, the sum of ``flow[to, from]`` over ``from < token <= to``: ``[H, L]``.

    As a product with ones: differences of sums over rows and columns would cancel to noise where
    decay is strong.
    """
    earlier_LL = torch.ones_like(flow_HLL[0]).triu_(1)
    return (flow_HLL @ earlier_LL).tril_().sum(1)
