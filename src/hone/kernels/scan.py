"""The selective scan of Mamba (Gu and Dao 2023) over sequences that lie behind one another.

Each of D channels carries a state of S numbers along its sequence (section 2, equation 2a, with A
discretised by zero-order hold and B by Euler's rule, as in section 3.3 and every release):

    h[t] = exp(delta[t] A) h[t - 1] + delta[t] B[t] x[t]        y[t] = C[t] h[t] + D x[t]

Shapes: N tokens of n sequences, D channels, S state size; in one block T tokens and W channels.
"""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Numbers in the states of one block: four such arrays stay in a processor's last cache.
_BLOCK = 1 << 19
# The backward pass keeps one state per block, so fewer tokens cost memory; more would gain no time.
_FEWEST_TOKENS, _MOST_TOKENS = 16, 64
# exp(x) is exp2(x · log2 e), which takes half the time on a CPU.
_LOG2_E = math.log2(math.e)


def selective_scan_reference(
    x_ND: Tensor,
    delta_ND: Tensor,
    A_DS: Tensor,
    B_NS: Tensor,
    C_NS: Tensor,
    D_D: Tensor | None,
    bounds: Sequence[int],
    state_nDS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token, in float32 (or float64 where ``x_ND`` is).

    Args:
        x_ND: the inputs.
        delta_ND: the step sizes, after softplus.
        A_DS: the continuous transition, negative.
        B_NS: how a token enters the state.
        C_NS: how the state is read.
        D_D: what passes by the state; None means nothing.
        bounds: where sequences begin and end: n + 1 ascending numbers from 0 to N.
        state_nDS: each sequence's state before its first token; None means zeros.

    Returns:
        The outputs ``[N, D]`` in the type of ``x_ND``, and the states ``[n, D, S]`` after each
        sequence's last token in the type of the arithmetic.
    """
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (x_ND, delta_ND, A_DS, B_NS, C_NS))
    outputs, states = [], []
    for i, (start, end) in enumerate(pairwise(bounds)):
        h_DS = torch.zeros_like(A) if state_nDS is None else state_nDS[i].to(dtype)
        for t in range(start, end):
            decay_DS = torch.exp(delta[t, :, None] * A)
            h_DS = decay_DS * h_DS + (delta[t] * x[t])[:, None] * B[t]
            outputs.append(h_DS @ C[t])
        states.append(h_DS)
    y_ND = torch.stack(outputs) if outputs else torch.zeros_like(x)
    if D_D is not None:
        y_ND = y_ND + x * D_D
    return y_ND.to(x_ND.dtype), torch.stack(states)


def selective_scan(
    x_ND: Tensor,
    delta_ND: Tensor,
    A_DS: Tensor,
    B_NS: Tensor,
    C_NS: Tensor,
    D_D: Tensor | None,
    bounds: Sequence[int],
    state_nDS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`selective_scan_reference`.

    The states of all tokens never exist at once: they are computed block by block in the cache,
    and again in the backward pass from the state before each block (section 3.3.2, recomputation).
    Returned states lie ``[n, S, D]`` in memory; passed on as they are, they are never copied.
    """
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (x_ND, delta_ND, A_DS, B_NS, C_NS))
    h_nSD = None if state_nDS is None else state_nDS.to(dtype).transpose(1, 2)
    if torch.is_grad_enabled():
        y_ND, h_nSD = _SelectiveScan.apply(x, delta, A, B, C, h_nSD, tuple(bounds))
    else:
        parts = []
        for single, sequences, rows, own in stretches(bounds):
            before = None if h_nSD is None else h_nSD[sequences]
            here = (x[rows], delta[rows], A, B[rows], C[rows], before)
            parts.append(_step(*here) if single else _scan(*here, own, keep=False)[:2])
        y_ND, h_nSD = joined(parts)
    if D_D is not None:
        y_ND = torch.addcmul(y_ND, x, D_D.to(dtype))
    return y_ND.to(x_ND.dtype), h_nSD.transpose(1, 2)


class Stretch(NamedTuple):
    """Neighbouring sequences that all have one token, or all have another number of them."""

    single: bool
    sequences: slice
    rows: slice
    bounds: list[int]  # of the sequences, from 0


def stretches(bounds: Sequence[int]) -> list[Stretch]:
    """Cut a pack where decoding sequences, of one token, and others meet."""
    lengths = [end - start for start, end in pairwise(bounds)]
    found, last = [], 0
    for single, run in groupby(length == 1 for length in lengths):
        first, last = last, last + len(list(run))
        start, end = bounds[first], bounds[last]
        own = [bound - start for bound in bounds[first : last + 1]]
        found.append(Stretch(single, slice(first, last), slice(start, end), own))
    return found


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and states of stretches behind one another; one alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    outputs, states = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(states)


def _step(
    x_nD: Tensor, delta_nD: Tensor, A_DS: Tensor, B_nS: Tensor, C_nS: Tensor, h_nSD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token of every sequence."""
    A_SD, u_nD = (A_DS * _LOG2_E).t().contiguous(), delta_nD * x_nD
    new_nSD = u_nD[:, None] * B_nS[:, :, None]
    if h_nSD is not None:
        # In the order of many tokens, so that the states have the same bits.
        new_nSD.addcmul_((delta_nD[:, None] * A_SD).exp2_(), h_nSD)
    return torch.bmm(C_nS[:, None], new_nSD)[:, 0], new_nSD


class _Block(NamedTuple):
    """Consecutive tokens of one sequence."""

    sequence: int
    tokens: slice
    place: int  # among all blocks


def _cut(
    bounds: Sequence[int], channels: int, state_size: int
) -> tuple[list[slice], list[_Block], int]:
    """Parts of the channels, blocks of the tokens, and how many numbers states of one need."""
    tokens = _BLOCK // (state_size * channels)
    tokens = min(max(tokens, _FEWEST_TOKENS), _MOST_TOKENS)
    widest = max(1, _BLOCK // (state_size * tokens))
    width = math.ceil(channels / math.ceil(channels / widest))
    parts = [slice(first, min(first + width, channels)) for first in range(0, channels, width)]
    blocks: list[_Block] = []
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        for first in range(start, end, tokens):
            inside = slice(first, min(first + tokens, end))
            blocks.append(_Block(sequence, inside, len(blocks)))
    return parts, blocks, tokens * state_size * width


def _run(
    delta_TW: Tensor,
    u_TW: Tensor,
    A_SW: Tensor,
    B_TS: Tensor,
    before_SW: Tensor,
    buffers: list[Tensor],
) -> list[Tensor]:
    """Consecutive tokens after the state ``before_SW``: one ``[T, S, W]`` of each buffer.

    The first holds the decays and the second the states; ``A_SW`` is to the base of 2.
    """
    shape = (len(B_TS), *A_SW.shape)
    decay_TSW, h_TSW, *more = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
    torch.mul(delta_TW[:, None], A_SW, out=decay_TSW).exp2_()
    torch.mul(u_TW[:, None], B_TS[:, :, None], out=h_TSW)
    for decay_SW, h_SW in zip(decay_TSW.unbind(0), h_TSW.unbind(0), strict=True):
        before_SW = h_SW.addcmul_(decay_SW, before_SW)
    return [decay_TSW, h_TSW, *more]


def _scan(
    x_ND: Tensor,
    delta_ND: Tensor,
    A_DS: Tensor,
    B_NS: Tensor,
    C_NS: Tensor,
    state_nSD: Tensor | None,
    bounds: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs without D, the last states, and the state before each block if they are to keep."""
    parts, blocks, numbers = _cut(bounds, *A_DS.shape)
    u_ND, A2_SD = delta_ND * x_ND, A_DS.t() * _LOG2_E
    y_ND = torch.empty_like(u_ND)
    h_nSD = x_ND.new_zeros(len(bounds) - 1, *A2_SD.shape)
    if state_nSD is not None:
        h_nSD.copy_(state_nSD)
    before_KSD = x_ND.new_empty(len(blocks), *A2_SD.shape) if keep else None
    buffers = [u_ND.new_empty(numbers) for _ in range(2)]
    for part in parts:
        A2_SW = A2_SD[:, part].contiguous()
        for sequence, tokens, place in blocks:
            h_SW = h_nSD[sequence, :, part]
            if before_KSD is not None:
                before_KSD[place, :, part] = h_SW
            delta_TW, u_TW, B_TS = delta_ND[tokens, part], u_ND[tokens, part], B_NS[tokens]
            _, h_TSW = _run(delta_TW, u_TW, A2_SW, B_TS, h_SW, buffers)
            y_ND[tokens, part] = torch.bmm(C_NS[tokens, None], h_TSW)[:, 0]
            h_SW.copy_(h_TSW[-1])
    return y_ND, h_nSD, before_KSD


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        delta_ND: Tensor,
        A_DS: Tensor,
        B_NS: Tensor,
        C_NS: Tensor,
        state_nSD: Tensor | None,
        bounds: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        keep = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        y_ND, h_nSD, before_KSD = _scan(x_ND, delta_ND, A_DS, B_NS, C_NS, state_nSD, bounds, keep)
        ctx.save_for_backward(x_ND, delta_ND, A_DS, B_NS, C_NS, before_KSD)  # type: ignore[arg-type]
        ctx.bounds = bounds  # type: ignore[attr-defined]
        return y_ND, h_nSD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_ND: Tensor, dh_nSD: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, delta_ND, A_DS, B_NS, C_NS, before_KSD = ctx.saved_tensors  # type: ignore[attr-defined]
        parts, blocks, numbers = _cut(ctx.bounds, *A_DS.shape)  # type: ignore[attr-defined]
        u_ND, A_SD = delta_ND * x_ND, A_DS.t()
        du_ND, ddelta_ND = torch.empty_like(u_ND), torch.empty_like(u_ND)
        dA_SD, dB_NS, dC_NS = (torch.zeros_like(tensor) for tensor in (A_SD, B_NS, C_NS))
        dh_nSD = dh_nSD.clone(memory_format=torch.contiguous_format)
        buffers = [u_ND.new_empty(numbers) for _ in range(4)]
        for part in parts:
            A_SW = A_SD[:, part].contiguous()
            A2_SW = A_SW * _LOG2_E
            for sequence, tokens, place in reversed(blocks):
                dh_SW, before_SW = dh_nSD[sequence, :, part], before_KSD[place, :, part]
                delta_TW, u_TW, dy_TW = (x[tokens, part] for x in (delta_ND, u_ND, dy_ND))
                B_TS, C_TS = B_NS[tokens], C_NS[tokens]
                decay_TSW, h_TSW, g_TSW, product_TSW = _run(
                    delta_TW, u_TW, A2_SW, B_TS, before_SW, buffers
                )
                # The gradients of the states run backwards through the same recurrence.
                torch.mul(C_TS[:, :, None], dy_TW[:, None], out=g_TSW)
                gradients, decays = g_TSW.unbind(0)[::-1], decay_TSW.unbind(0)[::-1]
                gradients[0].add_(dh_SW)
                for decay_SW, (later_SW, g_SW) in zip(decays, pairwise(gradients), strict=False):
                    g_SW.addcmul_(decay_SW, later_SW)
                torch.mul(decays[-1], gradients[-1], out=dh_SW)
                du_ND[tokens, part] = torch.bmm(B_TS[:, None], g_TSW)[:, 0]
                dB_NS[tokens] += torch.mul(g_TSW, u_TW[:, None], out=product_TSW).sum(-1)
                dC_NS[tokens] += torch.mul(h_TSW, dy_TW[:, None], out=product_TSW).sum(-1)
                # Now those of the exponents, delta A.
                de_TSW = decay_TSW.mul_(g_TSW)
                de_TSW[1:].mul_(h_TSW[:-1])
                de_TSW[0].mul_(before_SW)
                ddelta_ND[tokens, part] = torch.mul(de_TSW, A_SW, out=product_TSW).sum(1)
                dA_SD[:, part] += torch.mul(de_TSW, delta_TW[:, None], out=product_TSW).sum(0)
        ddelta_ND.addcmul_(du_ND, x_ND)
        dx_ND = du_ND.mul_(delta_ND)
        dstate_nSD = dh_nSD if ctx.needs_input_grad[5] else None  # type: ignore[attr-defined]
        return dx_ND, ddelta_ND, dA_SD.t(), dB_NS, dC_NS, dstate_nSD, None
