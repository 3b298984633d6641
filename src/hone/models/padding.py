"""Padded batches at the door: inside a model, tokens lie behind one another without padding.

Shapes: B rows, T columns, N real tokens.
"""

import torch
from torch import Tensor

from hone.core.errors import RequestError


class Padding:
    """Where the real tokens of a batch are.

    Attributes:
        lengths: real tokens of each row.
    """

    def __init__(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, continues: bool = False
    ) -> None:
        """Read the attention mask: 1 for a token, 0 for padding on either side; None for none.

        Args:
            continues: the batch is a piece of longer rows, of which some may bring nothing now.

        Raises:
            RequestError: the ids are no rows, the mask has another shape than they, or there is
                no token where one must be.
        """
        if ids_BT.ndim != 2:
            raise RequestError(
                f"The ids of a batch have the shape {list(ids_BT.shape)}; expected rows of ids."
            )
        self._rows, self._columns = ids_BT.shape
        self._device = ids_BT.device
        self._index: Tensor | None = None
        self.lengths = [self._columns] * self._rows
        if mask_BT is not None:
            self._read(mask_BT)
        if not self._rows:
            raise RequestError("The batch holds no row; give it at least one.")
        if 0 in self.lengths and not (continues and any(self.lengths)):
            raise RequestError(f"Row {self.lengths.index(0) + 1} of the batch holds no token.")

    def _read(self, mask_BT: Tensor) -> None:
        if mask_BT.shape != (self._rows, self._columns):
            raise RequestError(
                f"The attention mask has the shape {list(mask_BT.shape)}; the new tokens have "
                f"{[self._rows, self._columns]}."
            )
        counts = mask_BT.bool().sum(-1).tolist()
        if counts != self.lengths:
            self.lengths = counts
            self._index = mask_BT.flatten().nonzero()[:, 0]

    def pack(self, x_BT: Tensor) -> Tensor:
        """The real tokens' values, ``[B, T, ...]`` to ``[N, ...]``."""
        flat = x_BT.flatten(0, 1)
        return flat if self._index is None else flat.index_select(0, self._index)

    def unpack(self, x_N: Tensor) -> Tensor:
        """``[N, ...]`` to ``[B, T, ...]``, with zeros where there is padding."""
        if self._index is not None:
            flat = x_N.new_zeros(self._rows * self._columns, *x_N.shape[1:])
            x_N = flat.index_copy(0, self._index, x_N)
        return x_N.unflatten(0, (self._rows, self._columns))

    def last_columns(self, count: int) -> Tensor:
        """Which of the N real tokens stand in the last ``count`` columns, as int64 indices."""
        columns = torch.arange(self._columns, device=self._device).expand(self._rows, -1)
        return (self.pack(columns) >= self._columns - count).nonzero()[:, 0]

    def unpack_last(self, x_N: Tensor, keep: Tensor | None, count: int) -> Tensor:
        """The values of the tokens ``keep`` in the last ``count`` columns: ``[B, count, ...]``.

        None for ``keep`` unpacks all; see :meth:`last_columns`.
        """
        if keep is None:
            return self.unpack(x_N)
        count = min(count, self._columns)
        place = keep if self._index is None else self._index[keep]
        row, column = place // self._columns, place % self._columns - (self._columns - count)
        last = x_N.new_zeros(self._rows * count, *x_N.shape[1:])
        return last.index_copy(0, row * count + column, x_N).unflatten(0, (self._rows, count))
