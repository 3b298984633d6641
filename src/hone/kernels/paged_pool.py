"""A pool of blocks that hold keys or values, in floating point or in whole numbers of eight bits.

In int8 each vector of a token and head has a scale of its own, its largest magnitude over 127
(symmetric, round to nearest): a number is off by at most half a step, ``max|x| / 254``.

Shapes: NB blocks of bs slots, K heads, D head size; N tokens, n blocks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STEPS = 127.0
# Bytes of a line of the processor's cache.
_ALIGNED = 64


@dataclass(slots=True)
class Pool:
    """Blocks of one layer's keys, or of its values.

    Attributes:
        data: ``[NB, K, bs, D]``, zero at first.
        scale: ``[NB, K, bs]`` float32 where the data are whole numbers, else None.
    """

    data: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(
        cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> "Pool":
        """A pool of zeros; ``torch.int8`` brings scales."""
        scaled = dtype == torch.int8
        scale = _zeros(shape[:3], torch.float32, device) if scaled else None
        return cls(_zeros(shape, dtype, device), scale)

    @property
    def parts(self) -> list[Tensor]:
        """The tensors, blocks first."""
        return [self.data] if self.scale is None else [self.data, self.scale]

    def write(self, vectors_NK: Tensor, x_NKD: Tensor) -> None:
        """Put tokens at places: ``(block · K + head) · bs + slot`` for each token and head, int64
        ``[N · K]``.
        """
        data = self.data.view(-1, self.data.shape[-1])
        if self.scale is None:
            data.index_copy_(0, vectors_NK, x_NKD.flatten(0, 1).to(data.dtype))
            return
        whole_NKD, scale_NK = quantize(x_NKD)
        data.index_copy_(0, vectors_NK, whole_NKD.flatten(0, 1))
        self.scale.view(-1).index_copy_(0, vectors_NK, scale_NK.flatten())

    def clean(self, blocks_n: Tensor) -> None:
        """Fill blocks with zeros."""
        for part in self.parts:
            part.index_fill_(0, blocks_n, 0)

    def copy(self, source_n: Tensor, target_n: Tensor) -> None:
        """Copy whole blocks."""
        for part in self.parts:
            part.index_copy_(0, target_n, part.index_select(0, source_n))

    def move(self, source_N: Tensor, target_N: Tensor) -> None:
        """Copy single vectors, all read before any is written; places as in :meth:`write`."""
        for part in self.parts:
            vectors = part.flatten(0, 2)
            vectors.index_copy_(0, target_N, vectors.index_select(0, source_N))

    def between(self, first: int, end: int) -> "Pool":
        """Neighbouring blocks, in place."""
        scale = None if self.scale is None else self.scale[first:end]
        return Pool(self.data[first:end], scale)

    def gather(self, blocks_n: Tensor) -> "Pool":
        """Copies of some blocks."""
        scale = None if self.scale is None else self.scale.index_select(0, blocks_n)
        return Pool(self.data.index_select(0, blocks_n), scale)

    def collect(self, vectors: Tensor, count: int) -> "Pool":
        """``count`` blocks made of single vectors, in the order of the blocks' memory; places as in
        :meth:`write`.
        """
        shape = (count, *self.data.shape[1:])
        data, scale = self.data.view(-1, shape[-1]).index_select(0, vectors).view(shape), self.scale
        if scale is not None:
            scale = scale.view(-1).index_select(0, vectors).view(shape[:3])
        return Pool(data, scale)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """What the blocks hold, ``[NB, K, bs, D]``."""
        if self.scale is None:
            return self.data.to(dtype)
        return (self.data.float() * self.scale[..., None]).to(dtype)


def quantize(x_NKD: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers int8 ``[N, K, D]`` and their scales float32 ``[N, K]``."""
    x_NKD = x_NKD.float()
    scale_NK = x_NKD.abs().amax(-1) / _STEPS
    # A vector of zeros has the scale zero, and stays one.
    whole_NKD = torch.round(x_NKD / scale_NK.clamp_min(torch.finfo(torch.float32).tiny)[..., None])
    return whole_NKD.to(torch.int8), scale_NK


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like ``torch.zeros``; on a CPU, pages that are never written to take no memory."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    try:
        raw = np.zeros(size + _ALIGNED, dtype=np.uint8)
    except MemoryError as error:
        raise RuntimeError(f"no memory for {size:,} bytes") from error
    start = -raw.ctypes.data % _ALIGNED
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)
