"""Causal depthwise convolution over sequences that lie behind one another.

The short filter before the scan in Mamba (Gu and Dao 2023, section 3.4): each channel sees its own
last W inputs and nothing else.

Shapes: N tokens of n sequences, C channels, W taps, K = W - 1 inputs that a sequence remembers;
M = N + n K rows when each sequence has its memory before it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# Numbers that go through all taps before the next ones: they stay in a processor's last cache.
_BLOCK = 1 << 18


def causal_convolution_reference(
    x_NC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor | None,
    bounds: Sequence[int],
    state_nCK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``y[t] = bias + Σ_w weight[w] · x[t - K + w]`` inside each sequence, in float32 at least.

    Args:
        x_NC: the inputs.
        weight_CW: the taps of each channel, the one on the present token last.
        bias_C: added to every output; None means nothing.
        bounds: where sequences begin and end: n + 1 ascending numbers from 0 to N.
        state_nCK: the K inputs before each sequence's first token; None means zeros.

    Returns:
        The outputs ``[N, C]``, and the last K inputs ``[n, C, K]`` of each sequence, both in the
        type of ``x_NC``.
    """
    channels, taps = weight_CW.shape
    dtype = torch.promote_types(x_NC.dtype, torch.float32)
    weight_C1W, bias_C = weight_CW[:, None].to(dtype), None if bias_C is None else bias_C.to(dtype)
    outputs, states = [x_NC[:0]], []
    for i, (start, end) in enumerate(pairwise(bounds)):
        before_CK = x_NC.new_zeros(channels, taps - 1) if state_nCK is None else state_nCK[i]
        seen_CT = torch.cat((before_CK.to(x_NC.dtype), x_NC[start:end].t()), dim=1)
        states.append(seen_CT[:, end - start :])
        if end > start:
            y_CT = functional.conv1d(seen_CT.to(dtype), weight_C1W, bias_C, groups=channels)
            outputs.append(y_CT.t().to(x_NC.dtype))
    return torch.cat(outputs), torch.stack(states)


def causal_convolution(
    x_NC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor | None,
    bounds: Sequence[int],
    state_nCK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`causal_convolution_reference`; sums of rows times a tap, nothing transposed."""
    dtype = torch.promote_types(x_NC.dtype, torch.float32)
    x, weight = x_NC.to(dtype), weight_CW.to(dtype)
    bias = None if bias_C is None else bias_C.to(dtype)
    before_nKC = None if state_nCK is None else state_nCK.to(dtype).transpose(1, 2)
    if list(bounds) == list(range(len(x) + 1)):
        y_NC, after_nKC = _step(x, weight, bias, before_nKC)
    else:
        y_NC = _Convolution.apply(x, weight, bias, before_nKC, tuple(bounds))
        after_nKC = _last_inputs(x, weight.shape[1] - 1, before_nKC, bounds)
    return y_NC.to(x_NC.dtype), after_nKC.to(x_NC.dtype).transpose(1, 2)


def _last_inputs(
    x_NC: Tensor, memory: int, before_nKC: Tensor | None, bounds: Sequence[int]
) -> Tensor:
    """What every sequence remembers: ``[n, K, C]``."""
    if before_nKC is None:
        before_nKC = x_NC.new_zeros(len(bounds) - 1, memory, x_NC.shape[1])
    if memory == 0:
        return before_nKC
    parts = x_NC.split([end - start for start, end in pairwise(bounds)])
    return torch.stack(
        [
            torch.cat((before_KC, x_TC[-memory:]))[-memory:]
            for before_KC, x_TC in zip(before_nKC, parts, strict=True)
        ]
    )


def _step(
    x_nC: Tensor, weight_CW: Tensor, bias_C: Tensor | None, before_nKC: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token of every sequence."""
    *taps, present_C = weight_CW.unbind(1)
    y_nC = x_nC * present_C if bias_C is None else torch.addcmul(bias_C, x_nC, present_C)
    if before_nKC is None:
        before_nKC = x_nC.new_zeros(len(x_nC), len(taps), x_nC.shape[1])
    # The latest first, as for many tokens, so that both have the same bits.
    for before_nC, tap_C in zip(before_nKC.unbind(1)[::-1], taps[::-1], strict=True):
        y_nC = torch.addcmul(y_nC, before_nC, tap_C)
    return y_nC, torch.cat((before_nKC, x_nC[:, None]), dim=1)[:, 1:]


class _Overlap(NamedTuple):
    """Outputs that one tap joins to the inputs ``lag`` tokens before them."""

    lag: int
    outputs: slice
    inputs: slice
    remembered_by: int | None  # the sequence in whose memory the inputs are, if they are


def _overlaps(bounds: Sequence[int], taps: int, channels: int) -> Iterator[_Overlap]:
    """All overlaps, block of rows by block of rows; each block begins with lag 0."""
    rows = max(taps, _BLOCK // channels)
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        for first in range(start, end, rows):
            last = min(first + rows, end)
            for lag in range(taps):
                reach = min(max(first, start + lag), last)
                if reach < last:
                    yield _Overlap(lag, slice(reach, last), slice(reach - lag, last - lag), None)
                if first < reach:
                    oldest = taps - 1 - lag
                    inputs = slice(oldest, oldest + reach - first)
                    yield _Overlap(lag, slice(first, reach), inputs, sequence)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_NC: Tensor,
        weight_CW: Tensor,
        bias_C: Tensor | None,
        before_nKC: Tensor | None,
        bounds: tuple[int, ...],
    ) -> Tensor:
        lagged_WC = weight_CW.flip(1).t().contiguous()
        y_NC = torch.empty_like(x_NC)
        for lag, outputs, inputs, sequence in _overlaps(bounds, *lagged_WC.shape):
            if lag == 0 and bias_C is not None:
                torch.addcmul(bias_C, x_NC[inputs], lagged_WC[0], out=y_NC[outputs])
            elif lag == 0:
                torch.mul(x_NC[inputs], lagged_WC[0], out=y_NC[outputs])
            elif sequence is None:
                y_NC[outputs].addcmul_(x_NC[inputs], lagged_WC[lag])
            elif before_nKC is not None:
                y_NC[outputs].addcmul_(before_nKC[sequence, inputs], lagged_WC[lag])
        ctx.save_for_backward(x_NC, lagged_WC, before_nKC)  # type: ignore[arg-type]
        ctx.bounds = bounds  # type: ignore[attr-defined]
        return y_NC

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_NC: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, lagged_WC, before_nKC = ctx.saved_tensors  # type: ignore[attr-defined]
        dx_NC, dlagged_WC = torch.empty_like(x_NC), torch.zeros_like(lagged_WC)
        dbefore_nKC = None if before_nKC is None else torch.zeros_like(before_nKC)
        bounds = ctx.bounds  # type: ignore[attr-defined]
        for lag, outputs, inputs, sequence in _overlaps(bounds, *lagged_WC.shape):
            dy_RC, tap_C = dy_NC[outputs], lagged_WC[lag]
            if sequence is None:
                x_RC, dx_RC = x_NC[inputs], dx_NC[inputs]
            elif before_nKC is not None and dbefore_nKC is not None:
                x_RC, dx_RC = before_nKC[sequence, inputs], dbefore_nKC[sequence, inputs]
            else:
                continue
            if lag == 0:
                torch.mul(dy_RC, tap_C, out=dx_RC)
            else:
                dx_RC.addcmul_(dy_RC, tap_C)
            dlagged_WC[lag] += (dy_RC * x_RC).sum(0)
        dbias_C = dy_NC.sum(0) if ctx.needs_input_grad[2] else None  # type: ignore[attr-defined]
        return dx_NC, dlagged_WC.t().flip(1), dbias_C, dbefore_nKC, None
