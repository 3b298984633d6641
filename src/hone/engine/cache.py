"""The engine's key/value cache: grows as it is filled, and lets finished rows go.

Shapes: B rows, K key/value heads, S positions, D head size.
"""

import torch
from torch import Tensor

from hone.core.errors import CapacityError
from hone.models import LlamaConfig

_STEP = 64


class GrowingCache:
    """A :class:`hone.models.Cache` for one batch; every row advances together.

    Room is added by half of what there is, so that a high limit of new tokens costs memory only
    when it is used.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve ``capacity`` positions for each of ``batch`` rows."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self._layers = [
            (_allocate(shape, dtype, device), _allocate(shape, dtype, device))
            for _ in range(config.num_hidden_layers)
        ]
        self._length = 0

    @property
    def length(self) -> int:
        """Positions that every row holds, padding included."""
        return self._length

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append to ``layer``; returns all its keys and values ``[B, K, S, D]``."""
        end = self._length + k_BKTD.shape[2]
        keys, values = self._layers[layer]
        if end > keys.shape[2]:
            capacity = max(end, keys.shape[2] + keys.shape[2] // 2 + _STEP)
            keys, values = self._enlarge(keys, capacity), self._enlarge(values, capacity)
            self._layers[layer] = keys, values
        keys[:, :, self._length : end] = k_BKTD
        values[:, :, self._length : end] = v_BKTD
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, count: int) -> None:
        """The ``count`` positions of this pass are in every layer now."""
        self._length += count

    def select_rows(self, rows_R: Tensor) -> None:
        """Keep the rows ``rows_R`` (int64), in that order."""
        for layer, pair in enumerate(self._layers):
            keys, values = (self._enlarge(x, x.shape[2], rows_R) for x in pair)
            self._layers[layer] = keys, values

    def _enlarge(self, old: Tensor, capacity: int, rows_R: Tensor | None = None) -> Tensor:
        used = old[:, :, : self._length]
        if rows_R is not None:
            used = used.index_select(0, rows_R)
        shape = (used.shape[0], old.shape[1], capacity, old.shape[3])
        new = _allocate(shape, old.dtype, old.device)
        new[:, :, : self._length] = used
        return new


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # also torch.OutOfMemoryError
        raise CapacityError(
            f"There is no memory for a key/value cache of {shape[0]} sequences of {shape[2]} "
            "positions. Ask for fewer prompts at a time, or a smaller max_tokens."
        ) from error
