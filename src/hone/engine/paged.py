"""The engine's cache: keys and values in blocks of one pool per layer, states in slots.

Which block belongs to whom is for the owner to say, pass by pass, with tables (Kwon et al. 2023,
section 4). Block 0 is never given out.

Shapes: N tokens of a pass, M of its sources, NB blocks of bs slots, H query heads, K key/value
heads, C = H + 2K, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from hone.core.errors import CapacityError
from hone.kernels import AttentionRule, Bias, split_heads
from hone.kernels.attention import attention
from hone.kernels.paged import gather_blocks
from hone.models import ModelConfig


@dataclass(slots=True)
class Row:
    """What a pass brings of one sequence.

    Attributes:
        table: its blocks, in the order of positions, with room for the new tokens too.
        held: positions that the cache holds.
        new: tokens of the pass; they lie in the slots behind those held, in their order.
        parents: of a tree, the parent of each new token among the new ones, which stands before
            it; -1 for what is held. None for a chain.
        source_table, source_length: the blocks of its source, and its length.
        slot: its place in the pools of states.
    """

    table: list[int]
    held: int
    new: int
    parents: list[int] | None = None
    source_table: list[int] = field(default_factory=list)
    source_length: int = 0
    slot: int = 0

    def depths(self) -> list[int]:
        """How far behind what is held each new token stands."""
        if self.parents is None:
            return list(range(self.new))
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths


class PagedCache:
    """What the layers of a model remember of all sequences; a :class:`hone.models.Context`."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype | str,
        device: torch.device | str = "cpu",
        exact: bool = True,
        slots: int = 0,
    ) -> None:
        self._config, self._device, self.exact = config, torch.device(device), exact
        self.block_size = block_size
        self._dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
        self._slots = slots
        layers = config.num_hidden_layers if config.mixer == "attention" else 0
        shape = (blocks, config.num_key_value_heads, block_size, config.head_dim)
        self._pools = [
            (_allocate(shape, self._dtype, device), _allocate(shape, self._dtype, device))
            for _ in range(layers)
        ]
        self._states: dict[int, tuple[Tensor, ...]] = {}
        self._rows: list[Row] = []
        self._source_new: list[int] = []

    @staticmethod
    def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype | str) -> int:
        """Bytes of one block in all layers together."""
        if config.mixer != "attention":
            return 0
        dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
        numbers = config.num_hidden_layers * config.num_key_value_heads * block_size
        return 2 * numbers * config.head_dim * dtype.itemsize

    def begin(self, rows: list[Row], source_new: Sequence[int] = ()) -> None:
        """Plan the coming pass."""
        self._rows, self._source_new = rows, list(source_new)
        size = self.block_size
        places = [(row, row.held + i) for row in rows for i in range(row.new)]
        self._blocks_N = self._index([row.table[at // size] for row, at in places])
        self._slots_N = self._index([at % size for _, at in places])
        self._state_slots = self._index([row.slot for row in rows])

    @property
    def bounds(self) -> list[int]:
        """See :class:`hone.models.Context`."""
        return [0, *accumulate(row.new for row in self._rows)]

    @property
    def longest(self) -> int:
        """See :class:`hone.models.Context`."""
        return max((row.held + row.new for row in self._rows), default=0)

    def positions(self) -> Tensor:
        """The position of each token of the coming pass, int64 ``[N]``."""
        return self._index([row.held + depth for row in self._rows for depth in row.depths()])

    def lengths_N(self) -> Tensor:  # noqa: N802
        """See :class:`hone.models.Context`."""
        return self._index([row.held + row.new for row in self._rows for _ in range(row.new)])

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
        keys, values = self._pools[layer]
        count = len(self._blocks_N)
        keys[self._blocks_N, :, self._slots_N] = k_NKD[:count].to(keys.dtype)
        values[self._blocks_N, :, self._slots_N] = v_NKD[:count].to(values.dtype)
        start = 0
        for row in self._rows:
            tokens = slice(start, start := start + row.new)
            if row.new:
                length = row.held + row.new
                k_KSD, v_KSD = (
                    gather_blocks(x, row.table, length).to(q_NHD.dtype) for x in (keys, values)
                )
                q_HTD = q_NHD[tokens].transpose(0, 1)
                if row.parents is not None:
                    out_NHD[tokens] = self._tree(q_HTD, k_KSD, v_KSD, row, rule, bias)
                    continue
                out = attention(q_HTD[None], k_KSD[None], v_KSD[None], rule, bias)
                out_NHD[tokens] = out[0].transpose(0, 1)
        return out_NHD.flatten(1)

    def _tree(
        self,
        q_HTD: Tensor,
        k_KSD: Tensor,
        v_KSD: Tensor,
        row: Row,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """Each token as the last one of the chain of its ancestors."""
        assert row.parents is not None
        parts = []
        for token in range(row.new):
            chain, at = [], token
            while at >= 0:
                chain.append(row.held + at)
                at = row.parents[at]
            seen = self._index([*range(row.held), *reversed(chain)])
            k, v = k_KSD[:, seen], v_KSD[:, seen]
            parts.append(attention(q_HTD[None, :, token : token + 1], k[None], v[None], rule, bias))
        return torch.cat(parts, dim=2)[0].transpose(0, 1)

    def attend_source(
        self,
        layer: int,
        q_NHD: Tensor,
        keys_values: Callable[[], tuple[Tensor, Tensor]],
        rule: AttentionRule,
    ) -> Tensor:
        """See :class:`hone.models.Context`; like :meth:`attend`, with padding."""
        keys, values = self._pools[layer]
        if self._source_new:
            k_MKD, v_MKD = keys_values()
            size = self.block_size
            places = [
                (self._rows[i], at)
                for i in self._source_new
                for at in range(self._rows[i].source_length)
            ]
            blocks_M = self._index([row.source_table[at // size] for row, at in places])
            slots_M = self._index([at % size for _, at in places])
            keys[blocks_M, :, slots_M] = k_MKD[: len(places)].to(keys.dtype)
            values[blocks_M, :, slots_M] = v_MKD[: len(places)].to(values.dtype)
        out_NHD = torch.zeros_like(q_NHD)
        start = 0
        for row in self._rows:
            tokens = slice(start, start := start + row.new)
            if row.new:
                k_KSD, v_KSD = (
                    gather_blocks(x, row.source_table, row.source_length).to(q_NHD.dtype)
                    for x in (keys, values)
                )
                q_HTD = q_NHD[tokens].transpose(0, 1)
                out = attention(q_HTD[None], k_KSD[None], v_KSD[None], rule)
                out_NHD[tokens] = out[0].transpose(0, 1)
        return out_NHD.flatten(1)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """See :class:`hone.models.Context`."""
        if layer not in self._states:
            return None
        return tuple(pool.index_select(0, self._state_slots) for pool in self._states[layer])

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """See :class:`hone.models.Context`."""
        if layer not in self._states:
            self._states[layer] = tuple(x.new_zeros(self._slots, *x.shape[1:]) for x in state)
        for pool, new in zip(self._states[layer], state, strict=True):
            pool.index_copy_(0, self._state_slots, new.to(pool.dtype))

    def clear_slot(self, slot: int) -> None:
        """The sequence that comes to ``slot`` has no state."""
        for pools in self._states.values():
            for pool in pools:
                pool[slot].zero_()

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks ``(from, to)`` in every layer."""
        if not pairs:
            return
        source, target = (self._index(list(part)) for part in zip(*pairs, strict=True))
        for pools in self._pools:
            for pool in pools:
                pool.index_copy_(0, target, pool.index_select(0, source))

    def move(self, moves: list[tuple[list[int], int, int]]) -> None:
        """Move what positions hold, ``(table, from, to)``, in every layer; all at once."""
        if not moves:
            return
        size = self.block_size
        from_block = self._index([table[at // size] for table, at, _ in moves])
        from_slot = self._index([at % size for _, at, _ in moves])
        to_block = self._index([table[at // size] for table, _, at in moves])
        to_slot = self._index([at % size for _, _, at in moves])
        for pools in self._pools:
            for pool in pools:
                pool[to_block, :, to_slot] = pool[from_block, :, from_slot]

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self._device)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one too
        raise CapacityError(
            f"There is no memory for a key/value cache of {shape[0]:,} blocks of {shape[2]} "
            "positions; give it fewer blocks."
        ) from error
