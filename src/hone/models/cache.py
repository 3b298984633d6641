"""The cache of keys and values that attention reads and writes.

Shapes: B batch, T new positions, S all positions so far, K key/value heads, D head size.
"""

from typing import Protocol

import torch
from torch import Tensor

from hone.core.errors import RequestError
from hone.models.config import LlamaConfig


class Cache(Protocol):
    """What a model needs of a cache; the engine may implement it with pages.

    In one forward pass every layer calls :meth:`update` with the same T, then the model calls
    :meth:`advance` once.
    """

    @property
    def length(self) -> int:
        """Positions that every row holds already, padding included."""

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append T positions to ``layer``; return all its keys and values ``[B, K, S, D]``."""

    def advance(self, count: int) -> None:
        """The ``count`` positions of this pass are in every layer now."""


class ContiguousCache:
    """One preallocated ``[B, K, capacity, D]`` block of keys and one of values per layer.

    Rows advance together: prompts of unequal length are left-padded, and the attention mask that
    the caller gives to the model hides the padding.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (
            2,
            config.num_hidden_layers,
            batch,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
        )
        self._blocks = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        """Positions that every row holds already, padding included."""
        return self._length

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self._blocks.shape[4]

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Cache`; raises :class:`RequestError` when the block is full."""
        end = self._length + k_BKTD.shape[2]
        if end > self.capacity:
            raise RequestError(
                f"The key/value cache holds {self.capacity} positions and {end} are needed; "
                "ask for fewer new tokens or a longer cache."
            )
        keys, values = self._blocks[0, layer], self._blocks[1, layer]
        keys[:, :, self._length : end] = k_BKTD
        values[:, :, self._length : end] = v_BKTD
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, count: int) -> None:
        """See :class:`Cache`."""
        self._length += count

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        self._length = min(self._length, length)

    def select_rows(self, rows_R: Tensor) -> None:
        """Keep the rows ``rows_R`` (int64) in that order; finished sequences leave this way."""
        self._blocks = self._blocks.index_select(2, rows_R)
