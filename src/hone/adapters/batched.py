"""Several adapters at once: each row of a pass gets the update of its own, and the base's product.

The factors of all adapters lie behind one another, so that the updates of a layer are two products
whatever the number of adapters: of ``x · Aᵀ`` a row keeps the columns of its own adapter, and zeros
add nothing to ``(x · Aᵀ) · B`` (a mask in place of the gathers of Chen et al. 2023, Punica).

Shapes: N rows, E inputs, F outputs, R the ranks of all adapters of a layer, L its adapters with a
gain.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hone.kernels import project
from hone.kernels.lora import LowRank

_NONE = -1


class Runs:
    """Which adapter each row of a pass belongs to."""

    def __init__(self, exact: bool, device: torch.device) -> None:
        """No row has an adapter.

        Args:
            exact: the shape of a product does not depend on which adapters the rows have.
        """
        self.exact = exact
        self._device = device
        self._masks: dict[tuple[object, ...], Tensor] = {}
        self.set([])

    def set(self, runs: Sequence[tuple[int | None, int]]) -> None:
        """The rows are runs of the adapter of that number, or of none; those behind have none."""
        numbers = [_NONE if number is None else number for number, _ in runs]
        self._used = set(numbers) - {_NONE}
        self._all = False
        self._rows = sum(count for _, count in runs)
        self._masks.clear()
        if self._used:
            counts = torch.tensor([count for _, count in runs])
            self._owner_N = torch.tensor(numbers).repeat_interleave(counts).to(self._device)

    def set_all(self) -> None:
        """Every row of any pass gets every adapter, to measure products."""
        self._all = True
        self._masks.clear()

    def span(self, layout: Sequence[tuple[int, int]]) -> slice | None:
        """The columns that a layer must compute; None where no row needs any.

        Args:
            layout: the number and the rank of each of its adapters, as they lie.
        """
        start, first, last = 0, None, 0
        for number, rank in layout:
            if self._all or number in self._used:
                first = start if first is None else first
                last = start + rank
            start += rank
        if first is None:
            return None
        return slice(0, start) if self.exact or self._all else slice(first, last)

    def mask(self, layout: tuple[tuple[int, int], ...], like_NR: Tensor) -> Tensor:
        """1 where a column is of the row's adapter, else 0; ``[N, R]`` as ``like_NR``."""
        key = (layout, like_NR.shape[0], like_NR.dtype)
        found = self._masks.get(key)
        if found is None:
            found = self._masks[key] = self._make(layout, like_NR)
        return found

    def _make(self, layout: Sequence[tuple[int, int]], like_NR: Tensor) -> Tensor:
        if self._all:
            width = sum(rank for _, rank in layout)
            return like_NR.new_ones(like_NR.shape[0], width)
        rows = like_NR.shape[0]
        assert rows >= self._rows, "a pass has fewer rows than were announced"
        owner_N = nn.functional.pad(self._owner_N, (0, rows - self._rows), value=_NONE)
        columns = [number for number, rank in layout for _ in range(rank)]
        column_R = torch.tensor(columns, device=owner_N.device)
        return (owner_N[:, None] == column_R).to(like_NR.dtype)


class BatchedLora(nn.Module):
    """A linear layer of any number format, and the updates that adapters have of it."""

    a_RE: Tensor  # noqa: N815
    b_RF: Tensor  # noqa: N815
    gains_LF: Tensor | None  # noqa: N815

    def __init__(
        self, base: nn.Module, updates: Mapping[int, LowRank], runs: Runs, dtype: torch.dtype
    ) -> None:
        """The adapters of ``updates``, by their numbers.

        Args:
            dtype: of the updates' products.
        """
        super().__init__()
        self.base, self.runs = base, runs
        self.in_features = int(base.in_features)  # type: ignore[arg-type]
        self.out_features = int(base.out_features)  # type: ignore[arg-type]
        self.layout = tuple((number, len(update.a_RE)) for number, update in updates.items())
        # With the scale in B, a row's mask is 0 and 1, and nothing is rounded twice.
        factors_b = [update.b_FR.float().t() * update.scale for update in updates.values()]
        a_RE = torch.cat([update.a_RE.to(dtype) for update in updates.values()])
        gained = {n: update.gain_F for n, update in updates.items() if update.gain_F is not None}
        # y + (gain - 1)(y - bias) leaves rows of other adapters as they are, to the last bit.
        gains = [(gain_F.float() - 1).to(dtype) for gain_F in gained.values()]
        self.gain_layout = tuple((number, 1) for number in gained)
        self.register_buffer("a_RE", a_RE, persistent=False)
        self.register_buffer("b_RF", torch.cat(factors_b).to(dtype), persistent=False)
        self.register_buffer("gains_LF", torch.stack(gains) if gains else None, persistent=False)

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        bias = self.base.bias
        return bias if isinstance(bias, Tensor) else None

    def forward(self, x_NE: Tensor) -> Tensor:
        """``[N, E]`` to ``[N, F]``."""
        return self.joint_product(x_NE, (self,))

    @staticmethod
    def joint_product(x_NE: Tensor, modules: Sequence[nn.Module]) -> Tensor:
        """See :func:`hone.kernels.project`."""
        bases = [each.base if isinstance(each, BatchedLora) else each for each in modules]
        y_NF = project(x_NE, bases)
        start = 0
        for module in modules:
            end = start + int(module.out_features)  # type: ignore[arg-type]
            if isinstance(module, BatchedLora):
                module.update(x_NE, y_NF[:, start:end])
            start = end
        return y_NF

    def update(self, x_NE: Tensor, y_NF: Tensor) -> None:
        """Add to the base's product ``y_NF`` what each row's adapter adds."""
        columns = self.runs.span(self.layout)
        if columns is None:
            return
        u_NR = x_NE @ self.a_RE[columns].t()
        u_NR *= self.runs.mask(self.layout, u_NR)[:, columns]
        y_NF.addmm_(u_NR, self.b_RF[columns])
        if self.gains_LF is not None and self.runs.span(self.gain_layout) is not None:
            own_NL = self.runs.mask(self.gain_layout, y_NF)
            unbiased_NF = y_NF if self.bias is None else y_NF - self.bias
            y_NF.addcmul_(own_NL @ self.gains_LF, unbiased_NF)

    def extra_repr(self) -> str:
        """The shape, for people and for whoever tells layers apart by it."""
        ranks = sum(rank for _, rank in self.layout)
        gained = len(self.gain_layout)
        return f"in={self.in_features}, out={self.out_features}, r={ranks}, gains={gained}"
