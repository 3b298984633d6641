"""The selective scan of Mamba (Gu and Dao 2023) over sequences that lie behind one another.

Each of D channels carries a state of S numbers along its sequence (section 2, equation 2a, with A
discretised by zero-order hold and B by Euler's rule, as in section 3.3 and every release):

    h[t] = exp(delta[t] A) h[t - 1] + delta[t] B[t] x[t]        y[t] = C[t] h[t] + D x[t]

Shapes: N tokens of n sequences, D channels, S state size; in one block T tokens and W channels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Numbers in the states of one block: four such arrays stay in a processor's last cache.
_BLOCK = 1 << 18
# Tokens of a block at most: the backward pass keeps one state for each block.
_BLOCK_TOKENS = 32


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
    """
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (x_ND, delta_ND, A_DS, B_NS, C_NS))
    state_nSD = None if state_nDS is None else state_nDS.to(dtype).transpose(1, 2)
    if list(bounds) == list(range(len(x) + 1)):
        y_ND, state_nSD = _one_token_each(x, delta, A, B, C, state_nSD)
    else:
        y_ND, state_nSD = _SelectiveScan.apply(x, delta, A, B, C, state_nSD, tuple(bounds))
    if D_D is not None:
        y_ND = torch.addcmul(y_ND, x, D_D.to(dtype))
    return y_ND.to(x_ND.dtype), state_nSD.transpose(1, 2)


def _one_token_each(
    x_nD: Tensor, delta_nD: Tensor, A_DS: Tensor, B_nS: Tensor, C_nS: Tensor, h_nSD: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of every sequence: decoding."""
    new_nSD = (delta_nD * x_nD)[:, None] * B_nS[:, :, None]
    if h_nSD is not None:
        new_nSD = torch.addcmul(new_nSD, torch.exp(delta_nD[:, None] * A_DS.t()), h_nSD)
    return torch.bmm(C_nS[:, None], new_nSD)[:, 0], new_nSD


class _Block(NamedTuple):
    """Some tokens of one sequence."""

    place: int  # among all blocks
    tokens: slice


class _Blocks:
    """How a scan is cut: channels in parts, sequences in blocks of tokens."""

    def __init__(self, bounds: Sequence[int], channels: int, state_size: int) -> None:
        """Plan blocks of at most ``_BLOCK`` states."""
        width = max(1, _BLOCK // (_BLOCK_TOKENS * state_size))
        parts = -(-channels // width)
        width = -(-channels // parts)
        self.channels = [slice(c, min(c + width, channels)) for c in range(0, channels, width)]
        self.sequences: list[list[_Block]] = []
        self.count = 0
        for start, end in pairwise(bounds):
            blocks = []
            for t in range(start, end, _BLOCK_TOKENS):
                blocks.append(_Block(self.count, slice(t, min(t + _BLOCK_TOKENS, end))))
                self.count += 1
            self.sequences.append(blocks)
        self._most = _BLOCK_TOKENS * state_size * width

    def buffers(self, like: Tensor, count: int) -> list[Tensor]:
        """Flat memory for ``count`` arrays of a block's states."""
        return [like.new_empty(self._most) for _ in range(count)]


def _shaped(buffer: Tensor, *shape: int) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return buffer[:count].view(shape)


def _run(
    delta_TW: Tensor,
    u_TW: Tensor,
    A_SW: Tensor,
    B_TS: Tensor,
    before_SW: Tensor,
    decay_TSW: Tensor,
    h_TSW: Tensor,
) -> None:
    """Fill ``decay_TSW`` and ``h_TSW`` for consecutive tokens after the state ``before_SW``."""
    torch.mul(delta_TW[:, None], A_SW, out=decay_TSW).exp_()
    torch.mul(u_TW[:, None], B_TS[:, :, None], out=h_TSW)
    for decay_SW, h_SW in zip(decay_TSW.unbind(0), h_TSW.unbind(0), strict=True):
        before_SW = h_SW.addcmul_(decay_SW, before_SW)


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
        channels, size = A_DS.shape
        blocks = _Blocks(bounds, channels, size)
        u_ND, A_SD = delta_ND * x_ND, A_DS.t().contiguous()
        y_ND = torch.empty_like(x_ND)
        h_nSD = x_ND.new_zeros(len(bounds) - 1, size, channels)
        if state_nSD is not None:
            h_nSD.copy_(state_nSD)
        before_KSD = x_ND.new_empty(blocks.count, size, channels)
        buffers = blocks.buffers(x_ND, 2)
        for part in blocks.channels:
            A_SW = A_SD[:, part]
            for h_SD, sequence in zip(h_nSD, blocks.sequences, strict=True):
                h_SW = h_SD[:, part]
                for place, tokens in sequence:
                    before_KSD[place, :, part] = h_SW
                    delta_TW, u_TW, B_TS = delta_ND[tokens, part], u_ND[tokens, part], B_NS[tokens]
                    shape = (len(B_TS), *A_SW.shape)
                    decay_TSW, h_TSW = (_shaped(buffer, *shape) for buffer in buffers)
                    _run(delta_TW, u_TW, A_SW, B_TS, h_SW, decay_TSW, h_TSW)
                    y_ND[tokens, part] = torch.bmm(C_NS[tokens, None], h_TSW)[:, 0]
                    h_SW.copy_(h_TSW[-1])
        ctx.save_for_backward(x_ND, delta_ND, A_SD, B_NS, C_NS, before_KSD)
        ctx.plan = blocks  # type: ignore[attr-defined]
        return y_ND, h_nSD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_ND: Tensor, dh_nSD: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, delta_ND, A_SD, B_NS, C_NS, before_KSD = ctx.saved_tensors  # type: ignore[attr-defined]
        blocks: _Blocks = ctx.plan  # type: ignore[attr-defined]
        u_ND = delta_ND * x_ND
        du_ND, ddelta_ND = torch.empty_like(x_ND), torch.empty_like(x_ND)
        dA_SD, dB_NS, dC_NS = (torch.zeros_like(tensor) for tensor in (A_SD, B_NS, C_NS))
        dh_nSD = dh_nSD.clone()
        buffers = blocks.buffers(x_ND, 4)
        for part in blocks.channels:
            A_SW = A_SD[:, part]
            for dh_SD, sequence in zip(dh_nSD, blocks.sequences, strict=True):
                dh_SW = dh_SD[:, part]
                for place, tokens in reversed(sequence):
                    delta_TW, u_TW, B_TS = delta_ND[tokens, part], u_ND[tokens, part], B_NS[tokens]
                    dy_TW, before_SW = dy_ND[tokens, part], before_KSD[place, :, part]
                    shape = (len(B_TS), *A_SW.shape)
                    decay_TSW, h_TSW, g_TSW, product_TSW = (_shaped(b, *shape) for b in buffers)
                    _run(delta_TW, u_TW, A_SW, B_TS, before_SW, decay_TSW, h_TSW)
                    torch.mul(C_NS[tokens, :, None], dy_TW[:, None], out=g_TSW)
                    g_TSW[-1].add_(dh_SW)
                    decays, gradients = decay_TSW.unbind(0), g_TSW.unbind(0)
                    for t in range(len(decays) - 1, 0, -1):
                        gradients[t - 1].addcmul_(decays[t], gradients[t])
                    torch.mul(decays[0], gradients[0], out=dh_SW)
                    du_ND[tokens, part] = torch.bmm(B_TS[:, None], g_TSW)[:, 0]
                    dB_NS[tokens] += torch.mul(g_TSW, u_TW[:, None], out=product_TSW).sum(-1)
                    dC_NS[tokens] += torch.mul(h_TSW, dy_TW[:, None], out=product_TSW).sum(-1)
                    # The gradient of each delta · A, from that of its exponential.
                    q_TSW = decay_TSW.mul_(g_TSW)
                    q_TSW[1:].mul_(h_TSW[:-1])
                    q_TSW[0].mul_(before_SW)
                    ddelta_ND[tokens, part] = torch.mul(q_TSW, A_SW, out=product_TSW).sum(1)
                    dA_SD[:, part] += torch.mul(q_TSW, delta_TW[:, None], out=product_TSW).sum(0)
        ddelta_ND.addcmul_(du_ND, x_ND)
        dx_ND = du_ND.mul_(delta_ND)
        dstate_nSD = dh_nSD if ctx.needs_input_grad[5] else None  # type: ignore[attr-defined]
        return dx_ND, ddelta_ND, dA_SD.t(), dB_NS, dC_NS, dstate_nSD, None
