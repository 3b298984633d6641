"""Which tiles of queries see which blocks: the index work of one pass, once for all layers.

Shapes: n tiles of T queries that see up to W blocks each, P pairs of a tile and a block, E pairs
that belong to a tile; bs slots of a block, K key/value heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hone.kernels.paged import Tiles

Numbers = NDArray[np.int64]

# Sequences with more new tokens than this are attended one by one, in long products.
LONGEST_TILE = 16
# Blocks of a tile that lie as close as this in the pool are read in place, with what lies between
# them; so many of a run must be needed: copying a block costs about as much as its two products.
_GAP, _LEAST_SHARE, _SHORTEST_RUN = 8, 0.5, 4
# Numbers that are copied, or scores that are computed, at once: 64 MiB.
_AT_ONCE = 1 << 24
# Numbers that a softmax adds up at a time, at most.
_LANES = 16


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
        floor: where rotary angles depend on a token's length, that is its own place in the
            sequence, and this at least; 0 for the whole length of the pass.
    """

    table: list[int]
    held: int
    new: int
    parents: list[int] | None = None
    source_table: Sequence[int] = ()
    source_length: int = 0
    slot: int = 0
    floor: int = 0

    def depths(self) -> Sequence[int]:
        """How far behind what is held each new token stands."""
        if self.parents is None:
            return range(self.new)
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def chain(self, token: int) -> list[int]:
        """The new tokens up to ``token`` as it sees them, itself last."""
        assert self.parents is not None
        chain = []
        while token >= 0:
            chain.append(token)
            token = self.parents[token]
        return chain[::-1]


@dataclass(slots=True)
class Long:
    """Many new tokens of one sequence: those of the pass, and the row."""

    tokens: slice
    row: Row
    blocks: Tensor


@dataclass(slots=True)
class Plan:
    """Tiles of sequences with few new tokens, and the others one by one."""

    tiles: list[Tiles] = field(default_factory=list)
    longs: list[Long] = field(default_factory=list)


@dataclass(slots=True)
class _Tile:
    tokens: list[int]
    positions: list[int]
    first: int  # position of the first slot
    end: int  # position behind the last key
    blocks: Sequence[int]
    collected: list[Numbers] = field(default_factory=list)  # behind the blocks


@dataclass(frozen=True, slots=True)
class Planner:
    """How tiles are cut.

    Attributes:
        block_size, heads, kv_heads, head: bs, H, K, D.
        rows: the least number of rows of a product; 1 where bits do not matter.
        fixed: all products have this number of rows, and no sequence is attended in long ones.
    """

    block_size: int
    heads: int
    kv_heads: int
    head: int
    device: torch.device
    rows: int = 1
    fixed: bool = False

    @property
    def step(self) -> int:
        """Tiles see whole steps of so many blocks: a softmax adds up several numbers at a time, so
        that a position's place among them must not depend on where its tile begins.
        """
        return _LANES // math.gcd(_LANES, self.block_size)

    def _first_block(self, position: int, window: int | None) -> int:
        """The first block that a query sees something of, or one a little before it."""
        low = 0 if window is None else max(0, position - window + 1) // self.block_size
        return low // self.step * self.step

    def plan(self, rows: Sequence[Row], window: int | None, source: bool) -> Plan:
        """The tiles of a pass, to what a sequence holds or to its source."""
        plan = Plan()
        queries = max(1, -(-self.rows * self.kv_heads // self.heads))
        if all(row.new == 1 and row.parents is None for row in rows) and rows:
            batch = _Batch.of_single(self, rows, window, source, queries)
            if (joined := self._join(batch, window, source)) is not None:
                plan.tiles.append(joined)
                return plan
        single: list[_Tile] = []
        several: list[_Tile] = []
        start = 0
        for row in rows:
            tokens = range(start, start := start + row.new)
            table = row.source_table if source else row.table
            if row.new == 0:
                continue
            if row.parents is not None and not source:
                single += [
                    self._branch(row, token, tokens.start, window) for token in range(row.new)
                ]
                continue
            if row.new > LONGEST_TILE and not self.fixed:
                end = row.source_length if source else row.held + row.new
                blocks = torch.tensor(table[: -(-end // self.block_size)], dtype=torch.int64)
                own = slice(tokens.start, tokens.stop)
                plan.longs.append(Long(own, row, blocks.to(self.device)))
                continue
            size = queries if self.fixed else row.new
            for first in range(0, row.new, size):
                some = tokens[first : first + size]
                tile = self._tile(row, table, some, row.held + first, window, source)
                (single if len(some) == 1 else several).append(tile)
        longest = queries if self.fixed else max((len(t.tokens) for t in several), default=0)
        for tiles, size in ((single, queries), (several, max(queries, longest))):
            if tiles:
                plan.tiles += self._join_all(tiles, size, window, source)
        return plan

    def _tile(
        self,
        row: Row,
        table: Sequence[int],
        tokens: range,
        position: int,
        window: int | None,
        source: bool,
    ) -> _Tile:
        size = self.block_size
        end = row.source_length if source else position + len(tokens)
        low = 0 if source else self._first_block(position, window)
        positions = list(range(position, position + len(tokens)))
        return _Tile(list(tokens), positions, low * size, end, table[low : -(-end // size)])

    def _branch(self, row: Row, token: int, start: int, window: int | None) -> _Tile:
        """A token of a tree; its ancestors are collected to where a chain would have them."""
        size, chain = self.block_size, np.array(row.chain(token))
        position = row.held + len(chain) - 1
        low = self._first_block(position, window)
        whole = max(row.held // size, low)  # the first block that is collected
        at = np.arange(whole * size, (position // size + 1) * size)
        behind = at >= row.held
        # Slots behind the token itself are hidden; they repeat it.
        at[behind] = row.held + chain[np.minimum(at[behind] - row.held, len(chain) - 1)]
        block, slot = np.array(row.table)[at // size], at % size
        vectors = []
        for first in range(0, len(at), size):
            own = slice(first, first + size)
            head = np.arange(self.kv_heads)[:, None]
            vectors.append(((block[own] * self.kv_heads + head) * size + slot[own]).ravel())
        blocks = row.table[low:whole]
        return _Tile([start + token], [position], low * size, position + 1, blocks, vectors)

    def _join_all(
        self, tiles: list[_Tile], queries: int, window: int | None, source: bool
    ) -> list[Tiles]:
        """Tiles in as few products as memory allows."""
        joined = self._join(_Batch.of(tiles, queries), window, source)
        if joined is not None:
            return [joined]
        tiles = sorted(tiles, key=lambda tile: tile.end - tile.first)
        half = len(tiles) // 2
        return [
            joined
            for some in (tiles[:half], tiles[half:])
            for joined in self._join_all(some, queries, window, source)
        ]

    def _join(self, batch: "_Batch", window: int | None, source: bool) -> Tiles | None:
        """One product for all tiles; None where that would take too much memory at once."""
        count, queries = batch.tokens.shape
        counts = batch.plain + batch.more
        width = -(-int(counts.max()) // self.step) * self.step
        block = self.kv_heads * self.block_size * self.head
        entries, collected = batch.entries, batch.collected
        runs, copied = _runs(entries)
        scores = count * queries * self.heads * width * self.block_size
        if count > 1 and max(int(copied.sum()) * block, scores) > _AT_ONCE:
            return None
        # Pairs in place first, then copies, then what is collected.
        tile_E = np.arange(count).repeat(counts)
        place_E = np.arange(len(tile_E)) - (counts.cumsum() - counts).repeat(counts)
        is_plain_E = place_E < batch.plain.repeat(counts)
        pair_E = np.empty(len(tile_E), dtype=np.int64)
        pairs, numbers = 0, np.empty(len(entries), dtype=np.int64)
        for first, end in runs:
            inside = ~copied & (entries >= first) & (entries < end)
            numbers[inside] = entries[inside] - first + pairs
            pairs += end - first
        gathered = entries[copied]
        numbers[copied] = np.arange(pairs, pairs + len(gathered))
        pairs += len(gathered)
        pair_E[is_plain_E] = numbers
        pair_E[~is_plain_E] = np.arange(pairs, pairs + len(collected))
        pairs += len(collected)
        tile_of, place_of = np.zeros(pairs, dtype=np.int64), np.zeros(pairs, dtype=np.int64)
        tile_of[pair_E], place_of[pair_E] = tile_E, tile_E * width + place_E
        pair_of = np.zeros(count * width, dtype=np.int64)
        pair_of[place_of[pair_E]] = pair_E
        sent = send(
            [
                batch.tokens,
                batch.positions,
                batch.first,
                batch.end,
                gathered,
                np.concatenate(collected) if collected else np.empty(0, dtype=np.int64),
                tile_of,
                place_of,
                pair_of,
                pair_E,
                counts.cumsum() - counts,
                batch.real,
                batch.tokens.ravel()[batch.real],
            ],
            self.device,
        )
        joined = Tiles(
            tokens=sent[0],
            positions=sent[1],
            first=sent[2],
            ends=sent[3] if source else None,
            width=width,
            runs=runs,
            gathered=sent[4] if len(gathered) else None,
            collected=sent[5] if collected else None,
            tile_of=sent[6],
            place_of=sent[7],
            pair_of=sent[8],
            order=sent[9],
            starts=sent[10],
            real=sent[11],
            real_tokens=sent[12],
        )
        joined.see(self.block_size, window)
        return joined


@dataclass(frozen=True, slots=True)
class _Batch:
    """Tiles in numbers.

    Attributes:
        tokens, positions: ``[n, T]``; short tiles repeat their last query.
        real: which of the ``[n · T]`` queries are no repetition.
        first, end: position of the first slot, and behind the last key, ``[n]``.
        entries: the blocks of all tiles behind one another.
        plain, more: how many of them each has, and how many that are collected, ``[n]``.
        collected: the vectors of these.
    """

    tokens: Numbers
    positions: Numbers
    real: Numbers
    first: Numbers
    end: Numbers
    entries: Numbers
    plain: Numbers
    more: Numbers
    collected: list[Numbers]

    @classmethod
    def of(cls, tiles: list[_Tile], queries: int) -> "_Batch":
        """Tiles of up to ``queries`` queries."""
        tokens, positions = [], []
        real: list[int] = []
        for number, tile in enumerate(tiles):
            missing = queries - len(tile.tokens)
            tokens.append(tile.tokens + tile.tokens[-1:] * missing)
            positions.append(tile.positions + tile.positions[-1:] * missing)
            real += range(number * queries, number * queries + len(tile.tokens))
        return cls(
            np.array(tokens),
            np.array(positions),
            np.array(real),
            np.array([tile.first for tile in tiles]),
            np.array([tile.end for tile in tiles]),
            np.array([block for tile in tiles for block in tile.blocks], dtype=np.int64),
            np.array([len(tile.blocks) for tile in tiles]),
            np.array([len(tile.collected) for tile in tiles]),
            [vectors for tile in tiles for vectors in tile.collected],
        )

    @classmethod
    def of_single(
        cls, planner: Planner, rows: Sequence[Row], window: int | None, source: bool, queries: int
    ) -> "_Batch":
        """Tiles of one query each, of as many rows: most passes are like this."""
        count, size = len(rows), planner.block_size
        held = np.array([row.held for row in rows], dtype=np.int64)
        if source:
            low = np.zeros(count, dtype=np.int64)
            end = np.array([row.source_length for row in rows], dtype=np.int64)
            tables = [row.source_table for row in rows]
        else:
            step = planner.step
            seen = np.zeros_like(held) if window is None else np.maximum(0, held - window + 1)
            low, end = seen // size // step * step, held + 1
            tables = [row.table for row in rows]
        plain = -(-end // size) - low
        spans = zip(tables, low.tolist(), (low + plain).tolist(), strict=True)
        blocks = [block for table, first, last in spans for block in table[first:last]]
        return cls(
            np.arange(count)[:, None].repeat(queries, 1),
            held[:, None].repeat(queries, 1),
            np.arange(count) * queries,
            low * size,
            end,
            np.array(blocks, dtype=np.int64),
            plain,
            np.zeros(count, dtype=np.int64),
            [],
        )


def _runs(entries: Numbers) -> tuple[list[tuple[int, int]], NDArray[np.bool_]]:
    """Runs of blocks to be read in place, and which entries are to be copied: those outside of a
    run, and those of blocks that a tile before has in place.
    """
    blocks, first = np.unique(entries, return_index=True)
    copied = np.ones(len(entries), dtype=bool)
    runs = []
    cuts = np.flatnonzero(np.diff(blocks) > _GAP) + 1
    for run, where in zip(np.split(blocks, cuts), np.split(first, cuts), strict=True):
        if len(run) >= _SHORTEST_RUN and len(run) >= _LEAST_SHARE * (run[-1] + 1 - run[0]):
            runs.append((int(run[0]), int(run[-1]) + 1))
            copied[where] = False
    return runs, copied


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Whole numbers as tensors of the device, in one transfer."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64))
    parts = flat.to(device).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
