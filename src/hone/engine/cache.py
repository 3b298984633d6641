"""The engine's cache: rows of any lengths without padding, each attended by itself.

A row never sees, and is never summed beside, anything of another: what a row computes does not
depend on its neighbours. Rows of equal length that stand together are attended in one call.

Shapes: N tokens of a pass, B rows, S positions, H query heads, K key/value heads, C = H + 2K,
D head size.
"""

from collections.abc import Callable
from itertools import accumulate, groupby

import torch
from torch import Tensor

from hone.core.errors import CapacityError
from hone.kernels import AttentionRule, Bias, attention, split_heads
from hone.kernels.decode import decode_attention
from hone.models import ModelConfig

_STEP = 64


class RowCache:
    """What the layers of a model remember of one batch; a :class:`hone.models.Cache`.

    Attention remembers keys and values: room is added by half of what there is, so that a high
    limit of new tokens costs memory only when it is used. A decoder with sources remembers their
    keys and values once. Other layers keep states of constant size.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """A cache of ``rows`` rows, none of which holds anything."""
        self._config, self._dtype, self._device = config, dtype, torch.device(device)
        self._held = [0] * rows
        self._new = [0] * rows
        self._capacity = 0
        # By layer; made when a layer first asks.
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}
        self._source_lengths: list[int] | None = None
        self._states: dict[int, tuple[Tensor, ...]] = {}
        self._index: tuple[Tensor, Tensor] | None = None

    def begin(self, lengths: list[int], source_lengths: list[int] | None = None) -> None:
        """The coming pass has so many tokens of each row; see :class:`hone.models.Cache`."""
        assert len(lengths) == len(self._held), "a pass brings something of every row, if nothing"
        if source_lengths is not None:
            self._source_lengths = list(source_lengths)
        self._new = list(lengths)
        needed = max(map(sum, zip(self._held, self._new, strict=True)))
        if needed > self._capacity:
            more = needed + _STEP if self._capacity == 0 else self._capacity + self._capacity // 2
            self._move(list(range(len(self._held))), max(needed, more))
        self._plan()

    def advance(self) -> None:
        """The pass is over."""
        self._held = [held + new for held, new in zip(self._held, self._new, strict=True)]

    def held(self, row: int) -> int:
        """How many positions ``row`` holds."""
        return self._held[row]

    @property
    def bounds(self) -> list[int]:
        """See :class:`hone.models.Context`."""
        return [0, *accumulate(self._new)]

    @property
    def longest(self) -> int:
        """See :class:`hone.models.Context`."""
        return max(map(sum, zip(self._held, self._new, strict=True)))

    def positions(self) -> Tensor:
        """The position of each token of the coming pass, ``[N]`` int64."""
        spans = zip(self._held, self._new, strict=True)
        return torch.cat([torch.arange(held, held + new) for held, new in spans])

    def lengths_N(self) -> Tensor:  # noqa: N802
        """See :class:`hone.models.Context`."""
        totals = torch.tensor([a + b for a, b in zip(self._held, self._new, strict=True)])
        return totals.repeat_interleave(torch.tensor(self._new)).to(self._device)

    def attend(
        self,
        layer: int,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """See :class:`hone.models.Context`; tokens behind those of the rows are padding, and get
        zeros.
        """
        q_NHD, k_NKD, v_NKD = split_heads(qkv_NC, rotary, rule)
        out_NHD = torch.zeros_like(q_NHD)
        keys, values = self._keys_values(layer, k_NKD)
        if self._index is not None:
            rows_N, places_N = self._index
            count = len(rows_N)
            keys[rows_N, :, places_N] = k_NKD[:count].to(keys.dtype)
            values[rows_N, :, places_N] = v_NKD[:count].to(values.dtype)
        for first, end, new, length, start in self._groups:
            tokens = slice(start, start + (end - first) * new)
            k, v = keys[first:end, :, :length], values[first:end, :, :length]
            if self._index is None:
                k[:], v[:] = (
                    x[tokens].unflatten(0, (end - first, new)).transpose(1, 2)
                    for x in (k_NKD, v_NKD)
                )
            out_NHD[tokens] = _attend(q_NHD[tokens], k, v, rule, bias, new)
        return out_NHD.flatten(1)

    def attend_source(
        self,
        layer: int,
        q_NHD: Tensor,
        keys_values: Callable[[], tuple[Tensor, Tensor]],
        rule: AttentionRule,
    ) -> Tensor:
        """See :class:`hone.models.Context`; like :meth:`attend`, in groups and with padding."""
        assert self._source_lengths is not None, "the first pass says how long the sources are"
        if layer not in self._sources:
            count = sum(self._source_lengths)
            self._sources[layer] = tuple(  # type: ignore[assignment]
                torch.nn.utils.rnn.pad_sequence(
                    list(x_MKD[:count].split(self._source_lengths)), batch_first=True
                ).transpose(1, 2)
                for x_MKD in keys_values()
            )
        keys, values = self._sources[layer]
        out_NHD = torch.zeros_like(q_NHD)
        first = start = 0
        for (new, length), rows in groupby(zip(self._new, self._source_lengths, strict=True)):
            end = first + len(list(rows))
            if new:
                k, v = (x[first:end, :, :length] for x in (keys, values))
                tokens = slice(start, start + (end - first) * new)
                out_NHD[tokens] = _attend(q_NHD[tokens], k, v, rule, None, new)
            first, start = end, start + (end - first) * new
        return out_NHD.flatten(1)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """See :class:`hone.models.Context`."""
        return self._states.get(layer)

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """See :class:`hone.models.Context`."""
        self._states[layer] = state

    def select_rows(self, rows: list[int]) -> None:
        """Keep ``rows``, in that order; between :meth:`advance` and the next pass."""
        self._move(rows, self._capacity)
        self._held = [self._held[row] for row in rows]
        self._new = [self._new[row] for row in rows]
        index = torch.tensor(rows, device=self._device)
        for layer, pair in self._sources.items():
            self._sources[layer] = (pair[0][index], pair[1][index])
        if self._source_lengths is not None:
            self._source_lengths = [self._source_lengths[row] for row in rows]
        for layer, state in self._states.items():
            self._states[layer] = tuple(tensor[index] for tensor in state)

    def forget(self, row: int) -> None:
        """``row`` holds nothing any more; between :meth:`advance` and the next pass."""
        self._held[row] = 0

    def _plan(self) -> None:
        """Neighbours of equal lengths: (first row, row after the last, new tokens, length after
        the pass, first token); and where each token goes, unless all rows begin together.
        """
        spans = list(zip(self._new, self._held, strict=True))
        self._groups: list[tuple[int, int, int, int, int]] = []
        first = start = 0
        for (new, held), rows in groupby(spans):
            end = first + len(list(rows))
            if new:
                self._groups.append((first, end, new, held + new, start))
            first, start = end, start + (end - first) * new
        self._index = None
        if any(self._held):
            rows_N = torch.arange(len(spans)).repeat_interleave(torch.tensor(self._new))
            self._index = rows_N.to(self._device), self.positions().to(self._device)

    def _keys_values(self, layer: int, like_NKD: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            heads, size = like_NKD.shape[1:]
            shape = (len(self._held), heads, self._capacity, size)
            self._layers[layer] = (
                _allocate(shape, self._dtype, self._device),
                _allocate(shape, self._dtype, self._device),
            )
        return self._layers[layer]

    def _move(self, rows: list[int], capacity: int) -> None:
        used = max(self._held[row] for row in rows)
        index = torch.tensor(rows, device=self._device)
        for layer, pair in self._layers.items():
            moved = []
            for old in pair:
                shape = (len(rows), old.shape[1], capacity, old.shape[3])
                new = _allocate(shape, old.dtype, old.device)
                new[:, :, :used] = old[:, :, :used].index_select(0, index)
                moved.append(new)
            self._layers[layer] = moved[0], moved[1]
        self._capacity = capacity


def _attend(
    q_NHD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, rule: AttentionRule, bias: Bias | None, new: int
) -> Tensor:
    """Attention of ``new`` tokens of each of B rows; ``[B · new, H, D]``."""
    if new == 1 and rule.window is not None:
        k_BKSD, v_BKSD = (x[:, :, -rule.window :] for x in (k_BKSD, v_BKSD))
    if new == 1 and bias is None and rule.softcap is None:
        return decode_attention(q_NHD, k_BKSD, v_BKSD, rule.scale)
    q_BHTD = q_NHD.unflatten(0, (-1, new)).transpose(1, 2)
    return attention(q_BHTD, k_BKSD, v_BKSD, rule, bias).transpose(1, 2).flatten(0, 1)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one too
        raise CapacityError(
            f"There is no memory for a key/value cache of {shape[0]} sequences of {shape[2]} "
            "positions. Ask for fewer prompts at a time, or a smaller max_tokens."
        ) from error
