"""The cache of one batch for ``model(ids, cache=...)``: a paged cache that hands out its blocks."""

from collections.abc import Sequence

import torch

from hone.engine.paged import PagedCache, Row
from hone.models import ModelConfig

_BLOCK = 32


class RowCache(PagedCache):
    """What the layers of a model remember of one batch; a :class:`hone.models.Cache`.

    Room is added by half of what there is, so that a high limit of new tokens costs memory only
    when it is used.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """A cache of ``rows`` rows, none of which holds anything."""
        super().__init__(config, 1, _BLOCK, dtype, device, exact=False, slots=rows)
        self._owners = [Row([], 0, 0, slot=row) for row in range(rows)]
        self._blocks = 1
        self._free: list[int] = []

    def begin(  # type: ignore[override]
        self, lengths: Sequence[int], source_lengths: Sequence[int] | None = None
    ) -> None:
        """The coming pass has so many tokens of each row; see :class:`hone.models.Cache`.

        Raises:
            CapacityError: there is no memory for them.
        """
        rows = self._owners
        assert len(lengths) == len(rows), "a pass brings something of every row, if nothing"
        for row, new in zip(rows, lengths, strict=True):
            row.new = new
        if source_lengths is not None:
            for row, length in zip(rows, source_lengths, strict=True):
                row.source_length = length
        self._make_room()
        super().begin(rows, () if source_lengths is None else range(len(rows)))

    def advance(self) -> None:
        """The pass is over."""
        for row in self._owners:
            row.held += row.new
            row.new = 0

    def held(self, row: int) -> int:
        """How many positions ``row`` holds."""
        return self._owners[row].held

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep ``rows``, in that order; between :meth:`advance` and the next pass."""
        kept = [self._owners[row] for row in rows]
        for row in self._owners:
            if not any(row is one for one in kept):
                self._free += [*row.table, *row.source_table]
        self._owners = kept

    def forget(self, row: int) -> None:
        """``row`` holds nothing any more; between :meth:`advance` and the next pass."""
        self._owners[row].held = 0

    def _make_room(self) -> None:
        """Give every row the blocks that it needs."""
        if not self._pools:
            return
        rows = self._owners
        lacking = [-(-(row.held + row.new) // _BLOCK) - len(row.table) for row in rows]
        more = [-(-row.source_length // _BLOCK) - len(row.source_table) for row in rows]
        missing = sum(max(0, count) for count in (*lacking, *more)) - len(self._free)
        if missing > 0:
            blocks = max(self._blocks + missing, self._blocks + self._blocks // 2)
            self.grow(blocks)
            self._free += range(self._blocks, blocks)
            self._blocks = blocks
            self._free.sort(reverse=True)
        for row, own, source in zip(rows, lacking, more, strict=True):
            row.table += [self._free.pop() for _ in range(own)]
            row.source_table = [
                *row.source_table,
                *(self._free.pop() for _ in range(source)),
            ]
