"""The engine's cache: keys and values in blocks of one pool per layer, states in slots.

Which block belongs to whom is for the owner to say, pass by pass, with tables (Kwon et al. 2023,
section 4). Block 0 is never given out.

Shapes: N tokens of a pass, M of its sources, NB blocks of bs slots, H query heads, K key/value
heads, C = H + 2K, D head size.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from hone.core.errors import CapacityError
from hone.engine.paged_plan import Long, Plan, Planner, Row, send
from hone.engine.paged_states import States
from hone.kernels import AttentionRule, Bias, attention, split_heads
from hone.kernels.paged import added_scores, chunk_attention, steady_rows, tile_attention
from hone.kernels.paged_pool import Pool
from hone.kernels.scan_dual import CHUNK
from hone.models import ModelConfig

__all__ = ["PagedCache", "Row"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


class PagedCache:
    """What the layers of a model remember of all sequences; a :class:`hone.models.Context`.

    No gradient flows through it.
    """

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
        """A cache of empty blocks and slots.

        Args:
            blocks: in each pool, block 0 included.
            block_size: positions of a block; a multiple of 16 where bits matter.
            dtype: of keys and values, or its name; ``"int8"`` keeps a scale per token and head.
            exact: a token's bits depend on its own sequence only, not on what else is in a pass,
                how prompts are cut, where blocks lie, or what was guessed ahead. Otherwise
                attention takes whatever way is fastest.
            slots: sequences whose states can be kept, for models that have states.

        Raises:
            CapacityError: there is no memory for the pools.
        """
        self._config, self._device = config, torch.device(device)
        self.block_size, self.exact = block_size, exact
        self._dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        layers = config.num_hidden_layers if config.mixer == "attention" else 0
        self._pools = [(self._pool(blocks), self._pool(blocks)) for _ in range(layers)]
        self.states = States(slots, self._device)
        self._rows: list[Row] = []

    @property
    def chunk_multiple(self) -> int:
        """Prompts that are cut at multiples of this have the bits of whole ones.

        Chunks of Mamba-2 are products; a single token is not, so a cut must not leave one alone.
        """
        return CHUNK if self._config.mixer == "mamba2" else 1

    @staticmethod
    def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype | str) -> int:
        """Bytes of one block, in all layers together."""
        if config.mixer != "attention":
            return 0
        dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        vectors = 2 * config.num_hidden_layers * config.num_key_value_heads * block_size
        scale = torch.float32.itemsize if dtype == torch.int8 else 0
        return vectors * (config.head_dim * dtype.itemsize + scale)

    def grow(self, blocks: int) -> None:
        """Make room for so many blocks in all; those that there are stay what they are.

        Raises:
            CapacityError: there is no memory for them.
        """
        for layer, pools in enumerate(self._pools):
            grown = self._pool(blocks), self._pool(blocks)
            for old, new in zip(pools, grown, strict=True):
                for old_part, new_part in zip(old.parts, new.parts, strict=True):
                    new_part[: len(old_part)] = old_part
            self._pools[layer] = grown

    def begin(self, rows: list[Row], source_new: Sequence[int] = ()) -> None:
        """The coming pass brings tokens of ``rows``, one row after the other.

        Args:
            source_new: the rows whose sources come with this pass, in the order of the sources.
        """
        self._rows = rows
        self._plans: dict[tuple[int | None, bool], Plan] = {}
        self._added: dict[tuple[int, int], Tensor] = {}
        if self._pools and not source_new and all(row.new == 1 for row in rows):
            self._begin_decoding(rows)
            return
        positions = [np.array(row.depths(), dtype=np.int64) + row.held for row in rows]
        lengths = [
            np.maximum(row.floor, at + 1) if row.floor else np.full(row.new, row.held + row.new)
            for row, at in zip(rows, positions, strict=True)
        ]
        self.states.begin([row.slot for row in rows])
        if not self._pools:
            rows, source_new = [], ()  # states have no blocks
        size, heads = self.block_size, np.arange(self._config.num_key_value_heads)
        places = [self._places(row.table, row.held, row.held + row.new) for row in rows]
        sources = [self._places(rows[i].source_table, 0, rows[i].source_length) for i in source_new]
        # Blocks that are begun and not filled: what an earlier owner left in them is multiplied by
        # probabilities of zero, and must be numbers.
        begun: list[tuple[Sequence[int], int]] = [
            (row.table, end - 1)
            for row in rows
            if (end := row.held + row.new) % size and (end - 1) // size * size >= row.held < end
        ]
        begun += [
            (rows[i].source_table, end - 1) for i in source_new if (end := rows[i].source_length)
        ]
        empty = np.empty(0, dtype=np.int64)
        vectors = [
            ((block[:, None] * len(heads) + heads) * size + slot[:, None]).ravel()
            for block, slot in (
                np.concatenate([empty[None].repeat(2, 0), *some], axis=1)
                for some in (places, sources)
            )
        ]
        sent = send(
            [
                *vectors,
                np.concatenate([empty, *positions]),
                np.concatenate([empty, *lengths]),
                np.array([table[at // size] for table, at in begun]),
            ],
            self._device,
        )
        self._vectors, self._source_vectors, self._positions, self._lengths, self._begun = sent

    def _begin_decoding(self, rows: list[Row]) -> None:
        """As :meth:`begin`, of one token of each row and no source: most passes are like this."""
        size, heads = self.block_size, np.arange(self._config.num_key_value_heads)
        held = np.array([row.held for row in rows], dtype=np.int64)
        blocks = np.array([row.table[row.held // size] for row in rows], dtype=np.int64)
        slots = held % size
        vectors = ((blocks[:, None] * len(heads) + heads) * size + slots[:, None]).ravel()
        lengths = np.maximum(held + 1, [row.floor for row in rows])
        empty = np.empty(0, dtype=np.int64)
        begun = blocks[slots == 0] if size > 1 else empty
        sent = send([vectors, empty, held, lengths, begun], self._device)
        self._vectors, self._source_vectors, self._positions, self._lengths, self._begun = sent

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
        return self._positions

    def lengths_N(self) -> Tensor:  # noqa: N802
        """See :class:`hone.models.Context`."""
        return self._lengths

    @torch.no_grad()
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
        keys, values = self._pools[layer]
        count = len(self._positions)
        if len(self._begun):
            values.clean(self._begun)
        keys.write(self._vectors, k_NKD[:count])
        values.write(self._vectors, v_NKD[:count])
        plan = self._plan(rule, source=False)
        out_NHD = torch.zeros_like(q_NHD, memory_format=torch.contiguous_format)
        if not self.exact:
            self._attend_whole(q_NHD, k_NKD, v_NKD, out_NHD, plan, rule, bias)
        self._attend(q_NHD, out_NHD, layer, plan, rule, bias, source=False)
        return out_NHD.flatten(1)

    @torch.no_grad()
    def attend_source(
        self,
        layer: int,
        q_NHD: Tensor,
        keys_values: Callable[[], tuple[Tensor, Tensor]],
        rule: AttentionRule,
    ) -> Tensor:
        """See :class:`hone.models.Context`; padding as in :meth:`attend`."""
        if len(self._source_vectors):
            count = len(self._source_vectors) // rule.kv_heads
            for pool, x_MKD in zip(self._pools[layer], keys_values(), strict=True):
                pool.write(self._source_vectors, x_MKD[:count])
        out_NHD = torch.zeros_like(q_NHD, memory_format=torch.contiguous_format)
        plan = self._plan(rule, source=True)
        self._attend(q_NHD, out_NHD, layer, plan, rule, None, source=True)
        return out_NHD.flatten(1)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """See :class:`hone.models.Context`."""
        return self.states.read(layer)

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """See :class:`hone.models.Context`."""
        self.states.write(layer, state)

    def clear_slot(self, slot: int) -> None:
        """The sequence that comes to ``slot`` has no state yet."""
        self.states.clear(slot)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``(from, to)`` in every layer."""
        if pairs:
            source, target = send(list(np.array(pairs).T), self._device)
            for pools in self._pools:
                for pool in pools:
                    pool.copy(source, target)

    def move(self, moves: Sequence[tuple[list[int], int, int]]) -> None:
        """Move what positions hold, ``(table, from, to)``, in every layer; all are read before any
        is written.
        """
        if not moves:
            return
        size, heads = self.block_size, np.arange(self._config.num_key_value_heads)
        vectors = []
        for ends in ([(t, at) for t, at, _ in moves], [(t, at) for t, _, at in moves]):
            block = np.array([table[at // size] for table, at in ends])[:, None]
            slot = np.array([at % size for _, at in ends])[:, None]
            vectors.append(((block * len(heads) + heads) * size + slot).ravel())
        source, target = send(vectors, self._device)
        for pools in self._pools:
            for pool in pools:
                pool.move(source, target)

    def _attend_whole(
        self,
        q_NHD: Tensor,
        k_NKD: Tensor,
        v_NKD: Tensor,
        out_NHD: Tensor,
        plan: Plan,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> None:
        """Sequences that begin with this pass, with the keys and values as they come; neighbours
        of equal length in one call.
        """
        whole = [long for long in plan.longs if long.row.held == 0]
        for length, some in groupby(whole, key=lambda long: long.row.new):
            longs = list(some)
            tokens = [long.tokens for long in longs]
            behind = all(a.stop == b.start for a, b in pairwise(tokens))
            for group in [longs] if behind else [[long] for long in longs]:
                own = slice(group[0].tokens.start, group[-1].tokens.stop)
                q, k, v = (
                    x[own].unflatten(0, (-1, length)).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD)
                )
                out_NHD[own] = attention(q, k, v, rule, bias).transpose(1, 2).flatten(0, 1)

    def _attend(
        self,
        q_NHD: Tensor,
        out_NHD: Tensor,
        layer: int,
        plan: Plan,
        rule: AttentionRule,
        bias: Bias | None,
        source: bool,
    ) -> None:
        """What is not done yet, from the blocks."""
        keys, values = self._pools[layer]
        by_distance = None
        if bias is not None and (plan.tiles or self.exact):
            by_distance = self._by_distance(bias)
        for tiles in plan.tiles:
            added = None
            if by_distance is not None:
                known = id(by_distance), id(tiles)
                if known not in self._added:
                    assert tiles.distance is not None
                    self._added[known] = added_scores(by_distance, tiles.distance, rule.kv_heads)
                added = self._added[known]
            out = tile_attention(q_NHD, keys, values, tiles, rule, added)
            if len(tiles.real) < len(out):
                out = out.index_select(0, tiles.real)
            out_NHD.index_copy_(0, tiles.real_tokens, out)
        for long in plan.longs:
            if not (self.exact or source) and long.row.held == 0:
                continue
            out_NHD[long.tokens] = self._attend_long(
                q_NHD[long.tokens], keys, values, long, rule, bias, by_distance, source
            )

    def _attend_long(
        self,
        q_THD: Tensor,
        keys: Pool,
        values: Pool,
        long: Long,
        rule: AttentionRule,
        bias: Bias | None,
        by_distance: Tensor | None,
        source: bool,
    ) -> Tensor:
        """Many tokens of one sequence, ``[T, H, D]``."""
        row, own = long.row, (keys.gather(long.blocks), values.gather(long.blocks))
        if self.exact:
            length = row.source_length if source else None
            return chunk_attention(q_THD, *own, row.held, rule, by_distance, length)
        length = row.source_length if source else row.held + row.new
        k, v = (
            pool.numbers(q_THD.dtype).transpose(0, 1).flatten(1, 2)[None, :, :length]
            for pool in own
        )
        return attention(q_THD.transpose(0, 1)[None], k, v, rule, bias)[0].transpose(0, 1)

    def _by_distance(self, bias: Bias) -> Tensor:
        """What ``bias`` adds to the score of a key so far before the query, float32 ``[H, S]``."""
        known = id(bias), 0
        if known not in self._added:
            last_HS = bias(1, self.longest, self._device)[:, 0]
            self._added[known] = last_HS.flip(-1).float()
        return self._added[known]

    def _plan(self, rule: AttentionRule, source: bool) -> Plan:
        """The tiles of this pass for a window, made when a layer first asks."""
        key = rule.window, source
        if key not in self._plans:
            head = self._config.head_dim
            rows: int | None = 1
            if self.exact:
                threads = torch.get_num_threads()
                rows = steady_rows(head, self.block_size, torch.float32, self._device, threads)
            planner = Planner(
                self.block_size,
                rule.heads,
                rule.kv_heads,
                head,
                self._device,
                rows=rows or _FIXED_ROWS,
                fixed=rows is None,
            )
            self._plans[key] = planner.plan(self._rows, rule.window, source)
        return self._plans[key]

    def _places(self, table: Sequence[int], first: int, end: int) -> np.ndarray:
        """The block and the slot of each position, ``[2, positions]``."""
        at = np.arange(first, end)
        if first == end:
            return np.empty((2, 0), dtype=np.int64)
        low = first // self.block_size
        blocks = np.array(table[low : (end - 1) // self.block_size + 1], dtype=np.int64)
        return np.stack((blocks[at // self.block_size - low], at % self.block_size))

    def _pool(self, blocks: int) -> Pool:
        config = self._config
        shape = (blocks, config.num_key_value_heads, self.block_size, config.head_dim)
        try:
            return Pool.of(shape, self._dtype, self._device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one too
            size = self.block_bytes(config, self.block_size, self._dtype) * blocks
            raise CapacityError(
                f"There is no memory for a key/value cache of {blocks:,} blocks of "
                f"{self.block_size} positions ({size / 2**30:,.1f} GiB); make it smaller."
            ) from error


# Rows of every product where bits depend on their number.
_FIXED_ROWS = 16
