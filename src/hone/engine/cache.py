"""The engine's key/value cache: rows of any lengths without padding, each attended by itself.

A row never sees, and is never summed beside, anything of another: what a row computes does not
depend on its neighbours. Rows of equal length that stand together are attended in one call.

Shapes: N tokens of a pass, B rows, S positions, H query heads, K key/value heads,
C = H + 2K, D head size.
"""

from itertools import groupby

import torch
from torch import Tensor

from hone.core.errors import CapacityError
from hone.kernels import apply_rotary, attention
from hone.kernels.decode import decode_attention
from hone.models import LlamaConfig

_STEP = 64


class RowCache:
    """Keys and values of one batch; :meth:`attend` is what the model's blocks call.

    Room is added by half of what there is, so that a high limit of new tokens costs memory only
    when it is used.
    """

    def __init__(
        self,
        config: LlamaConfig,
        lengths: list[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make room for prompts of ``lengths`` tokens, one per row."""
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._new = list(lengths)
        self._held = [0] * len(lengths)
        shape = (len(lengths), self._kv_heads, max(lengths) + _STEP, config.head_dim)
        self._layers = [
            (_allocate(shape, dtype, device), _allocate(shape, dtype, device))
            for _ in range(config.num_hidden_layers)
        ]
        self._index: tuple[Tensor, Tensor] | None = None
        self._plan()

    def attend(self, layer: int, qkv_NC: Tensor, rotary: Tensor) -> Tensor:
        """Attention of a pass's tokens ``[N, C · D]``, row after row; returns ``[N, H · D]``.

        Tokens behind those of the rows are padding: they get zeros.
        """
        qkv_NCD = qkv_NC.unflatten(-1, (self._heads + 2 * self._kv_heads, -1))
        qk_NCD, v_NKD = qkv_NCD.split((self._heads + self._kv_heads, self._kv_heads), dim=1)
        q_NHD, k_NKD = apply_rotary(qk_NCD, rotary).split((self._heads, self._kv_heads), dim=1)
        out_NHD = torch.zeros_like(q_NHD)
        if self._index is None:
            self._prompts(layer, q_NHD, k_NKD, v_NKD, out_NHD)
        else:
            rows_B, last_B = self._index
            count = len(rows_B)
            keys, values = self._layers[layer]
            keys[rows_B, :, last_B] = k_NKD[:count]
            values[rows_B, :, last_B] = v_NKD[:count]
            for first, end, length in self._groups:
                out_NHD[first:end] = decode_attention(
                    q_NHD[first:end], keys[first:end, :, :length], values[first:end, :, :length]
                )
        return out_NHD.flatten(1)

    def advance(self) -> None:
        """The pass is over; the next one brings one token for each row."""
        self._held = [held + new for held, new in zip(self._held, self._new, strict=True)]
        self._new = [1] * len(self._held)
        self._plan()
        device = self._layers[0][0].device
        self._index = (
            torch.arange(len(self._held), device=device),
            torch.tensor(self._held, device=device),
        )
        capacity = self._layers[0][0].shape[2]
        if max(self._held) + 1 > capacity:
            self._move(list(range(len(self._held))), capacity + capacity // 2 + _STEP)

    def positions(self) -> Tensor:
        """The position of each token of the coming pass, ``[N]`` int64."""
        spans = zip(self._held, self._new, strict=True)
        return torch.cat([torch.arange(held, held + new) for held, new in spans])

    def select_rows(self, rows: list[int]) -> None:
        """Keep ``rows``, in that order; between :meth:`advance` and the next pass."""
        self._move(rows, self._layers[0][0].shape[2])
        self._held = [self._held[row] for row in rows]
        self._new = [self._new[row] for row in rows]
        self._plan()
        if self._index is not None:
            device = self._index[0].device
            self._index = (
                torch.arange(len(rows), device=device),
                torch.tensor(self._held, device=device),
            )

    def _plan(self) -> None:
        """Neighbours of equal length: (first row, row after the last, length after the pass)."""
        lengths = [held + new for held, new in zip(self._held, self._new, strict=True)]
        self._groups: list[tuple[int, int, int]] = []
        first = 0
        for length, rows in groupby(lengths):
            end = first + len(list(rows))
            self._groups.append((first, end, length))
            first = end

    def _prompts(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, out_NHD: Tensor
    ) -> None:
        keys, values = self._layers[layer]
        start = 0
        for first, end, length in self._groups:
            count = end - first
            tokens = slice(start, start + count * length)
            q, k, v = (
                x[tokens].unflatten(0, (count, length)).transpose(1, 2)
                for x in (q_NHD, k_NKD, v_NKD)
            )
            keys[first:end, :, :length], values[first:end, :, :length] = k, v
            out_NHD[tokens] = attention(q, k, v).transpose(1, 2).flatten(0, 1)
            start = tokens.stop

    def _move(self, rows: list[int], capacity: int) -> None:
        used = max(self._held[row] for row in rows)
        index = torch.tensor(rows, device=self._layers[0][0].device)
        for layer, pair in enumerate(self._layers):
            moved = []
            for old in pair:
                shape = (len(rows), old.shape[1], capacity, old.shape[3])
                new = _allocate(shape, old.dtype, old.device)
                new[:, :, :used] = old[:, :, :used].index_select(0, index)
                moved.append(new)
            self._layers[layer] = moved[0], moved[1]


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one too
        raise CapacityError(
            f"There is no memory for a key/value cache of {shape[0]} sequences of {shape[2]} "
            "positions. Ask for fewer prompts at a time, or a smaller max_tokens."
        ) from error
