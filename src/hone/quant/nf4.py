"""NF4 with double quantization: four bits per weight, half a byte and 1/63 for its constants.

Dettmers et al. 2023, "QLoRA", section 3: every block of 64 weights, in the order of memory, is
divided by its largest magnitude and rounded to one of 16 levels that split a normal distribution
into equal parts (appendix E). The magnitudes are quantized in turn: less their mean, in blocks of
256, each divided by its largest and rounded to one of 256 levels. Codes and constants are those of
``bitsandbytes.functional.quantize_4bit`` on a CPU, to the last bit.

Shapes: N outputs, K inputs, M rows of activations, B blocks of 64 weights, S blocks of 256 blocks,
P = 32 bytes of codes per block. The last block of a layer may be short.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK = 64
NESTED_BLOCK = 256
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Below it no reciprocal is finite in float32.
_SMALLEST = 1e-38
# Weights whose codes are found at a time, and that are dequantized at a time: blocks that stay in
# the cache of a CPU, and that fill a GPU.
_QUANTIZED_AT_ONCE = 2**17
_CPU_AT_ONCE = 2**20
_GPU_AT_ONCE = 2**24
# Numbers that bitsandbytes tells apart when it rounds to the 256 levels.
_GRID = 2**16


class Nested(NamedTuple):
    """How the magnitudes of blocks are quantized, all float32.

    Attributes:
        absmax: what each block of 256 was divided by, ``[S]``.
        quant_map: the levels that their codes stand for, ``[256]``.
        offset: the mean that was taken off them before, ``[]``.
    """

    absmax: Tensor
    quant_map: Tensor
    offset: Tensor


class Nf4State(NamedTuple):
    """A weight in NF4.

    Attributes:
        codes: uint8; two to a byte, the first in the high nibble. ``[N, K / 2]`` where rows are
            whole blocks, else ``[⌈N · K / 2⌉, 1]``.
        absmax: of every block, float32, or uint8 codes where it is quantized. ``[N, K / 64]``
            where rows are whole blocks, else ``[B]``.
        shape: N and K.
        nested: how ``absmax`` is quantized; None where it is not.
    """

    codes: Tensor
    absmax: Tensor
    shape: tuple[int, int]
    nested: Nested | None = None


def layout(rows: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The shapes of ``codes`` and ``absmax`` of a weight, and S."""
    blocks = -(rows * inputs // -BLOCK)
    nested = -(blocks // -NESTED_BLOCK)
    if inputs % BLOCK:
        return (-(rows * inputs // -2), 1), (blocks,), nested
    return (rows, inputs // 2), (rows, inputs // BLOCK), nested


@cache
def dynamic_map() -> Tensor:
    """The 256 levels of ``absmax``, ascending: a sign, a power of ten from 1 to 1e-6 and a fraction
    whose bits are those that the power leaves (Dettmers 2016, section 2.1). Float32.
    """
    levels = [0.0, 1.0]
    for bits in range(7):
        edges = torch.linspace(0.1, 1, 2**bits + 1, dtype=torch.float32)
        fractions = (10.0 ** (bits - 6)) * ((edges[:-1] + edges[1:]) / 2)
        levels += [*fractions.tolist(), *(-fractions).tolist()]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nf4_quantize_reference(weight_NK: Tensor, double: bool = True) -> Nf4State:
    """Round a float weight to NF4, as it is written.

    Args:
        double: quantize ``absmax`` too.
    """
    flat = weight_NK.reshape(-1).float()
    blocks = flat.split(BLOCK)
    absmax_B = torch.stack([block.abs().max() for block in blocks])
    bounds = _bounds(flat.device)
    codes = torch.cat([_scaled(b[None])[0] for b in blocks])
    codes = torch.bucketize(codes, bounds).to(torch.uint8)
    return _state(_pack(codes), absmax_B, weight_NK, double)


def nf4_quantize(weight_NK: Tensor, double: bool = True) -> Nf4State:
    """See :func:`nf4_quantize_reference`; needs memory for the codes and one part of the weight."""
    flat = weight_NK.detach().reshape(-1)
    bounds = _bounds(flat.device).tolist()
    at_once = _QUANTIZED_AT_ONCE if flat.device.type == "cpu" else _GPU_AT_ONCE
    absmax, packed = [], []
    for part in flat.split(at_once):
        values = part.float()
        if len(values) % BLOCK:  # the last one
            whole = len(values) // BLOCK * BLOCK
            pieces = [values[:whole].view(-1, BLOCK), values[None, whole:]]
        else:
            pieces = [values.view(-1, BLOCK)]
        scaled = torch.cat([_scaled(piece).flatten() for piece in pieces])
        absmax += [piece.abs().amax(dim=1) for piece in pieces if piece.numel()]
        # The number of bounds that a value lies above: many times as fast as searching for it.
        codes = torch.zeros(len(scaled), dtype=torch.uint8, device=scaled.device)
        for bound in bounds:
            codes += scaled > bound
        packed.append(_pack(codes))
    return _state(torch.cat(packed), torch.cat(absmax), weight_NK, double)


def _bounds(device: torch.device) -> Tensor:
    levels = torch.tensor(LEVELS, device=device)
    return (levels[:-1] + levels[1:]) / 2


def _scaled(blocks: Tensor) -> Tensor:
    """Blocks ``[B, n]`` divided by their largest magnitudes."""
    absmax_B1 = blocks.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST)
    # bitsandbytes multiplies whole blocks by the reciprocal and divides a short one.
    scaled = blocks * (1.0 / absmax_B1) if blocks.shape[1] == BLOCK else blocks / absmax_B1
    return scaled.clamp(-1, 1)


def _pack(codes: Tensor) -> Tensor:
    if len(codes) % 2:
        codes = functional.pad(codes, (0, 1), value=LEVELS.index(0.0))
    return (codes[::2] << 4) | codes[1::2]


def _state(codes: Tensor, absmax_B: Tensor, weight_NK: Tensor, double: bool) -> Nf4State:
    rows, inputs = weight_NK.shape
    if rows * inputs % BLOCK:  # bitsandbytes keeps a short block's constant from being zero
        absmax_B = torch.cat((absmax_B[:-1], absmax_B[-1:].clamp(min=_SMALLEST)))
    codes_shape, absmax_shape, _ = layout(rows, inputs)
    codes = codes.view(codes_shape)
    if not double:
        return Nf4State(codes, absmax_B.view(absmax_shape), (rows, inputs))
    offset = absmax_B.mean()
    quantized_B, nested_absmax_S = quantize_blocks(absmax_B - offset, NESTED_BLOCK)
    nested = Nested(nested_absmax_S, dynamic_map().to(absmax_B.device, copy=True), offset)
    return Nf4State(codes, quantized_B.view(absmax_shape), (rows, inputs), nested)


@cache
def _nearest_levels(device: torch.device) -> Tensor:
    """The code of every number of the grid between -1 and 1."""
    grid = torch.arange(_GRID, dtype=torch.float32) / (_GRID - 1) * 2 - 1
    levels = dynamic_map()
    return torch.bucketize(grid, (levels[:-1] + levels[1:]) / 2).to(torch.uint8).to(device)


def quantize_blocks(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Round float32 ``values`` ``[n]`` to the levels of :func:`dynamic_map`, block by block.

    As bitsandbytes does on a CPU, they are rounded to a grid of 65,536 numbers first.

    Returns:
        codes: uint8 ``[n]``.
        absmax: what each block was divided by, float32.
    """
    short = -len(values) % block
    blocks = functional.pad(values, (0, short)).view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    # Where all are zero, 0 · ∞ is the first level: times zero, as good as any.
    scaled = (blocks * (1.0 / absmax[:, None])).clamp(-1, 1)
    places = ((scaled + 1) * 0.5 * (_GRID - 1) + 0.5).nan_to_num(0).int()
    codes = _nearest_levels(values.device)[places]
    return codes.flatten()[: len(values)], absmax


def block_absmax(state: Nf4State) -> Tensor:
    """The largest magnitude of every block, float32, in the shape of ``state.absmax``."""
    if state.nested is None:
        return state.absmax
    codes_B = state.absmax.flatten()
    levels_B = state.nested.quant_map[codes_B.int()]
    scale_B = state.nested.absmax.repeat_interleave(NESTED_BLOCK)[: len(codes_B)]
    return (levels_B * scale_B + state.nested.offset).view(state.absmax.shape)


def nf4_dequantize_reference(state: Nf4State, dtype: torch.dtype) -> Tensor:
    """The weight ``[N, K]`` as it is written: level times magnitude, rounded once to ``dtype``."""
    rows, inputs = state.shape
    pairs = state.codes.flatten().int()
    codes = torch.stack((pairs >> 4, pairs & 15), dim=1).flatten()[: rows * inputs]
    levels = torch.tensor(LEVELS, device=codes.device)[codes]
    absmax = block_absmax(state).flatten().repeat_interleave(BLOCK)[: len(levels)]
    return (levels * absmax).to(dtype).view(rows, inputs)


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels that each byte stands for, ``[256]`` pairs of float32 seen as one number:
    looking up eight bytes at once is several times as fast as four bytes twice.
    """
    levels = torch.tensor(LEVELS)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)
    return pairs.view(torch.float64).flatten().to(device)


def _weights(codes: Tensor, absmax: Tensor) -> Tensor:
    """Whole blocks of codes and their magnitudes to float32 ``[B, 64]``."""
    pairs = _pairs(codes.device).index_select(0, codes.flatten().int())
    return pairs.view(torch.float32).view(-1, BLOCK).mul_(absmax.reshape(-1, 1))


def _at_once(device: torch.device) -> int:
    return _CPU_AT_ONCE if device.type == "cpu" else _GPU_AT_ONCE


def _row_tiles(state: Nf4State) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight and their values in float32, a part at a time."""
    rows, inputs = state.shape
    absmax = block_absmax(state)
    if inputs % BLOCK:  # blocks run across rows
        codes = state.codes.flatten()
        codes = functional.pad(codes, (0, -len(codes) % (BLOCK // 2)))
        yield slice(0, rows), _weights(codes, absmax).flatten()[: rows * inputs].view(rows, inputs)
        return
    step = max(1, _at_once(absmax.device) // inputs)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, _weights(state.codes[part], absmax[part]).view(-1, inputs)


def _column_tiles(state: Nf4State) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the weight and their values in float32, a part at a time."""
    rows, inputs = state.shape
    if inputs % BLOCK:
        yield slice(0, inputs), next(_row_tiles(state))[1]
        return
    absmax = block_absmax(state)
    step = max(1, _at_once(absmax.device) // (rows * BLOCK))
    codes = state.codes.view(rows, -1, BLOCK // 2)
    for start in range(0, inputs // BLOCK, step):
        part = slice(start, min(start + step, inputs // BLOCK))
        tile = _weights(codes[:, part], absmax[:, part]).view(rows, -1)
        yield slice(part.start * BLOCK, part.stop * BLOCK), tile


def nf4_dequantize(state: Nf4State, dtype: torch.dtype) -> Tensor:
    """See :func:`nf4_dequantize_reference`."""
    weight_NK = torch.empty(state.shape, dtype=dtype, device=state.codes.device)
    for rows, tile in _row_tiles(state):
        weight_NK[rows] = tile
    return weight_NK


def nf4_forward(x_MK: Tensor, state: Nf4State, bias_N: Tensor | None = None) -> Tensor:
    """``x · Wᵀ + bias`` in the dtype of ``x``, without a graph; a part of W exists at a time."""
    y_MN = x_MK.new_empty(len(x_MK), state.shape[0])
    x_MK = x_MK.detach()
    for rows, tile in _row_tiles(state):
        tile = tile.to(x_MK.dtype).t()
        if bias_N is None:
            torch.mm(x_MK, tile, out=y_MN[:, rows])
        else:
            torch.addmm(bias_N[rows].to(x_MK.dtype), x_MK, tile, out=y_MN[:, rows])
    return y_MN


def nf4_backward(grad_MN: Tensor, state: Nf4State) -> Tensor:
    """The gradient of :func:`nf4_forward` by ``x``: ``dy · W``."""
    grad_MK = grad_MN.new_empty(len(grad_MN), state.shape[1])
    for columns, tile in _column_tiles(state):
        torch.mm(grad_MN, tile.to(grad_MN.dtype), out=grad_MK[:, columns])
    return grad_MK


class _Product(torch.autograd.Function):
    """The weight is frozen, so nothing but its codes is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, state: Nf4State, bias_N: Tensor | None) -> Tensor:
        ctx.state = state
        return nf4_forward(x_MK, state, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, None, None]:
        return nf4_backward(grad_MN, ctx.state), None, None


def nf4_linear(x: Tensor, state: Nf4State, bias_N: Tensor | None = None) -> Tensor:
    """``x · Wᵀ + bias`` of ``x`` ``[..., K]``, in its dtype; weight and bias are frozen."""
    rows, inputs = state.shape
    y_MN: Tensor = _Product.apply(x.reshape(-1, inputs), state, bias_N)
    return y_MN.view(*x.shape[:-1], rows)
