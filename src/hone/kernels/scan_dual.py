"""The scan of Mamba-2 as matrix products: state space duality (Dao and Gu 2024, section 6).

A state space model whose transition is one number per head is a masked attention: inside a chunk
outputs come from L x L matrices of scores and decays, between chunks from one state each.

    h[t] = exp(dt[t] A) h[t - 1] + dt[t] B[t] x[t]ᵀ        y[t] = C[t]ᵀ h[t] + D x[t]

Shapes: N tokens of n sequences, H heads of size P, G groups of heads that share B and C, S state
size; L tokens of one chunk; J = H / G, F = J P, the columns of a group's state.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from hone.kernels.scan import joined, stretches

# exp(x) is exp2(x · log2 e), which takes half the time on a CPU.
_LOG2_E = math.log2(math.e)
# Tokens of a chunk: a sequence that is cut elsewhere than at a multiple has other last bits.
CHUNK = 64


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
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See :func:`state_space_dual_reference`.

    Args:
        chunk: L; a matter of speed, not of the result.
    """
    dtype = torch.promote_types(x_NHP.dtype, torch.float32)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in (x_NHP, dt_NH, A_H, B_NGS, C_NGS))
    if state_nHPS is None:
        h_nHPS = x.new_zeros(len(bounds) - 1, *x.shape[1:], B.shape[2])
    else:
        h_nHPS = state_nHPS.to(dtype)
    if torch.is_grad_enabled():
        y_NHP, h_nHPS = _StateSpaceDual.apply(x, dt, A, B, C, h_nHPS, tuple(bounds), chunk)
    else:
        parts = []
        for single, sequences, rows, own in stretches(bounds):
            here = (x[rows], dt[rows], A, B[rows], C[rows], h_nHPS[sequences])
            parts.append(_step(*here) if single else _scan(*here, own, chunk, keep=False)[:2])
        y_NHP, h_nHPS = joined(parts)
    if D_H is not None:
        y_NHP = torch.addcmul(y_NHP, x, D_H.to(dtype)[:, None])
    return y_NHP.to(x_NHP.dtype), h_nHPS


def _step(
    x_nHP: Tensor, dt_nH: Tensor, A_H: Tensor, B_nGS: Tensor, C_nGS: Tensor, h_nHPS: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of every sequence."""
    B_nG1S, C_nG1S = B_nGS[:, :, None], C_nGS[:, :, None]
    entering_nGF1 = (dt_nH[:, :, None] * x_nHP).reshape(*B_nGS.shape[:2], -1, 1)
    h_nHPS = torch.exp(dt_nH * A_H)[:, :, None, None] * h_nHPS
    h_nGFS = h_nHPS.reshape(*entering_nGF1.shape[:3], -1).addcmul_(entering_nGF1, B_nG1S)
    # A sum and no product: its bits do not depend on how many sequences there are.
    y_nGF = (h_nGFS * C_nG1S).sum(-1)
    return y_nGF.reshape(x_nHP.shape), h_nGFS.reshape(h_nHPS.shape)


class _Chunk(NamedTuple):
    """What the tokens of one chunk do to one another and to the state."""

    entering: Tensor  # dt x [L, H, P]
    decay: Tensor  # [H, L, L] from the token in the column to that in the row; 1 to the past
    mixing: Tensor  # [H, L, L] from what enters to the outputs: decay · C Bᵀ, 0 to the past
    since: Tensor  # [L, H, 1] decay since the state before the chunk
    until: Tensor  # [L, H, 1] decay until the state after it
    through: Tensor  # [G, 1, J, 1] decay from one to the other


def _chunk(x_LHP: Tensor, dt_LH: Tensor, A_H: Tensor, B_LGS: Tensor, C_LGS: Tensor) -> _Chunk:
    # In float64: a difference of long sums has their error, and decays multiply it.
    sum_LH = (dt_LH * A_H).cumsum(0, dtype=torch.float64).mul_(_LOG2_E)
    sum_HL, dtype = sum_LH.t().contiguous(), x_LHP.dtype
    decay_HLL = (sum_HL[:, :, None] - sum_HL[:, None, :]).to(dtype).clamp_(max=0).exp2_()
    scores_GLL = torch.bmm(C_LGS.transpose(0, 1), B_LGS.permute(1, 2, 0)).tril_()
    since_LH1 = sum_LH.exp2().to(dtype)[:, :, None]
    return _Chunk(
        entering=x_LHP * dt_LH[:, :, None],
        decay=decay_HLL,
        mixing=(_grouped(decay_HLL, B_LGS) * scores_GLL[:, None]).flatten(0, 1),
        since=since_LH1,
        until=(sum_LH[-1] - sum_LH).exp2().to(dtype)[:, :, None],
        through=since_LH1[-1].view(len(scores_GLL), 1, -1, 1),
    )


def _grouped(of_H: Tensor, B_LGS: Tensor) -> Tensor:
    """``[H, ...]`` as ``[G, J, ...]``."""
    return of_H.unflatten(0, (B_LGS.shape[1], -1))


def _columns(x_LHP: Tensor, B_LGS: Tensor) -> Tensor:
    """``[L, H, P]`` as ``[G, L, F]``."""
    return x_LHP.reshape(*B_LGS.shape[:2], -1).transpose(0, 1)


def _rows(x_GLF: Tensor, x_LHP: Tensor) -> Tensor:
    """``[G, L, F]`` as ``[L, H, P]``."""
    return x_GLF.transpose(0, 1).reshape(x_LHP.shape)


def _inner(state_nHPS: Tensor, groups: int) -> Tensor:
    """``[n, H, P, S]`` as a new ``[n, G, S, J, P]``: all heads of a group in one product."""
    return (
        state_nHPS.unflatten(1, (groups, -1))
        .permute(0, 1, 4, 2, 3)
        .clone(memory_format=torch.contiguous_format)
    )


def _outer(state_nGSJP: Tensor) -> Tensor:
    """``[n, G, S, J, P]`` as ``[n, H, P, S]``."""
    return state_nGSJP.permute(0, 1, 3, 4, 2).flatten(1, 2)


def _chunks(bounds: Sequence[int], chunk: int) -> Iterator[tuple[int, slice]]:
    """Each chunk's sequence and tokens; none reaches over a sequence's end."""
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        for first in range(start, end, chunk):
            yield sequence, slice(first, min(first + chunk, end))


def _scan(
    x_NHP: Tensor,
    dt_NH: Tensor,
    A_H: Tensor,
    B_NGS: Tensor,
    C_NGS: Tensor,
    state_nHPS: Tensor,
    bounds: Sequence[int],
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs without D, the last states, and the state before each chunk if they are to keep."""
    y_NHP, before = torch.empty_like(x_NHP), []
    h_nGSJP = _inner(state_nHPS, B_NGS.shape[1])
    for sequence, tokens in _chunks(bounds, chunk):
        h_GSJP = h_nGSJP[sequence]
        h_GSF = h_GSJP.flatten(2)
        if keep:
            before.append(h_GSF.clone())
        x_LHP, B_LGS, C_LGS = x_NHP[tokens], B_NGS[tokens], C_NGS[tokens]
        c = _chunk(x_LHP, dt_NH[tokens], A_H, B_LGS, C_LGS)
        inside_LHP = torch.bmm(c.mixing, c.entering.transpose(0, 1)).transpose(0, 1)
        carried_LHP = _rows(torch.bmm(C_LGS.transpose(0, 1), h_GSF), x_LHP)
        torch.addcmul(inside_LHP, carried_LHP, c.since, out=y_NHP[tokens])
        h_GSJP.mul_(c.through)
        h_GSF.baddbmm_(B_LGS.permute(1, 2, 0), _columns(c.entering * c.until, B_LGS))
    return y_NHP, _outer(h_nGSJP), before


class _StateSpaceDual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_NHP: Tensor,
        dt_NH: Tensor,
        A_H: Tensor,
        B_NGS: Tensor,
        C_NGS: Tensor,
        state_nHPS: Tensor,
        bounds: tuple[int, ...],
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        keep = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        y_NHP, h_nHPS, before = _scan(
            x_NHP, dt_NH, A_H, B_NGS, C_NGS, state_nHPS, bounds, chunk, keep
        )
        ctx.save_for_backward(x_NHP, dt_NH, A_H, B_NGS, C_NGS, *before)
        ctx.plan = (bounds, chunk)  # type: ignore[attr-defined]
        return y_NHP, h_nHPS

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_NHP: Tensor, dh_nHPS: Tensor) -> tuple[Tensor | None, ...]:
        x_NHP, dt_NH, A_H, B_NGS, C_NGS, *before = ctx.saved_tensors  # type: ignore[attr-defined]
        dx_NHP, ddt_NH, dA_H = torch.empty_like(x_NHP), torch.empty_like(dt_NH), 0 * A_H
        dB_NGS, dC_NGS = torch.empty_like(B_NGS), torch.empty_like(C_NGS)
        dh_nGSJP = _inner(dh_nHPS, B_NGS.shape[1])
        chunks = [*_chunks(*ctx.plan)]  # type: ignore[attr-defined]
        for (sequence, tokens), h_GSF in zip(reversed(chunks), reversed(before), strict=True):
            x_LHP, dt_LH, B_LGS, C_LGS = x_NHP[tokens], dt_NH[tokens], B_NGS[tokens], C_NGS[tokens]
            B_GLS, C_GLS = B_LGS.transpose(0, 1), C_LGS.transpose(0, 1)
            dy_LHP, dh_GSJP = dy_NHP[tokens], dh_nGSJP[sequence]
            dy_HLP, dh_GSF = dy_LHP.transpose(0, 1), dh_GSJP.flatten(2)
            c = _chunk(x_LHP, dt_LH, A_H, B_LGS, C_LGS)
            # Through the products inside the chunk.
            dmixing_HLL = torch.bmm(dy_HLP, c.entering.permute(1, 2, 0))
            dinside_LHP = torch.bmm(c.mixing.transpose(1, 2), dy_HLP).transpose(0, 1)
            dscores_GLL = _grouped(dmixing_HLL * c.decay, B_LGS).sum(1).tril_()
            # Through the state before the chunk.
            carried_LHP = _rows(torch.bmm(C_GLS, h_GSF), x_LHP)
            dcarried_LHP = dy_LHP * c.since
            dcarried_GLF = _columns(dcarried_LHP, B_LGS)
            dC_GLS = torch.bmm(dscores_GLL, B_GLS)
            dC_NGS[tokens] = dC_GLS.baddbmm_(dcarried_GLF, h_GSF.mT).transpose(0, 1)
            # Through the state after it.
            leaving_LHP = c.entering * c.until
            dleaving_LHP = _rows(torch.bmm(B_GLS, dh_GSF), x_LHP)
            dB_GLS = torch.bmm(dscores_GLL.mT, C_GLS)
            dB_GLS.baddbmm_(_columns(leaving_LHP, B_LGS), dh_GSF.mT)
            dB_NGS[tokens] = dB_GLS.transpose(0, 1)
            dh_GSJP.mul_(c.through)
            # A token's decay lies on every way across it: inside the chunk, from the state before,
            # to the state after, and from the one to the other.
            dlog_LH = _across(dmixing_HLL.mul_(c.mixing))
            dlog_LH += (dcarried_LHP * carried_LHP).sum(-1).flip(0).cumsum(0).flip(0)
            dlog_LH[1:] += (leaving_LHP * dleaving_LHP).sum(-1).cumsum(0)[:-1]
            dlog_LH += (dh_GSJP * h_GSF.view_as(dh_GSJP)).sum((1, 3)).flatten()
            dh_GSF.baddbmm_(C_GLS.mT, dcarried_GLF)
            dentering_LHP = torch.addcmul(dinside_LHP, dleaving_LHP, c.until)
            dx_NHP[tokens] = dentering_LHP * dt_LH[:, :, None]
            ddt_NH[tokens] = torch.addcmul((dentering_LHP * x_LHP).sum(-1), dlog_LH, A_H)
            dA_H += (dlog_LH * dt_LH).sum(0)
        return dx_NHP, ddt_NH, dA_H, dB_NGS, dC_NGS, _outer(dh_nGSJP), None, None


def _across(flow_HLL: Tensor) -> Tensor:
    """For each token, the sum of ``flow[to, from]`` over ``from < token <= to``: ``[L, H]``.

    As a product with ones: differences of sums over rows and columns would cancel to noise where
    decay is strong.
    """
    earlier_LL = torch.ones_like(flow_HLL[0]).triu_(1)
    return (flow_HLL @ earlier_LL).tril_().sum(1).t()
