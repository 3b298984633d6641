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

    def __init__(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> None:
        """Read the attention mask: 1 for a token, 0 for padding on either side; None for none.

        Raises:
            RequestError: the mask has another shape than the ids.
        """
        self._rows, self._columns = ids_BT.shape
        self._index: Tensor | None = None
        self.lengths = [self._columns] * self._rows
        if mask_BT is None:
            return
        if mask_BT.shape != ids_BT.shape:
            raise RequestError(
                f"The attention mask has the shape {list(mask_BT.shape)}; the new tokens have "
                f"{list(ids_BT.shape)}."
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
        columns = torch.arange(self._columns).expand(self._rows, -1)
        device = None if self._index is None else self._index.device
        return (self.pack(columns.to(device)) >= self._columns - count).nonzero()[:, 0]
