"""Pools of states, for layers that remember a constant number of numbers of each sequence."""

import torch
from torch import Tensor


class States:
    """States by layer, a slot for each sequence; zeros are no state."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._slots, self._device = slots, device
        # By layer: pools in the order of memory in which states come, and that order.
        self._pools: dict[int, list[tuple[Tensor, list[int]]]] = {}
        self._own: list[int] = []
        self._index = torch.empty(0, dtype=torch.int64, device=device)

    def begin(self, slots: list[int]) -> None:
        """The rows of the coming pass have these slots."""
        if slots != self._own:
            self._own = slots
            self._index = torch.tensor(slots, dtype=torch.int64).to(self._device)

    def read(self, layer: int) -> tuple[Tensor, ...] | None:
        """The states of the rows, one behind the other; None before any was written."""
        if layer not in self._pools:
            return None
        return tuple(
            pool.index_select(0, self._index).permute(_inverse(order))
            for pool, order in self._pools[layer]
        )

    def write(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Remember the states of the rows."""
        if self._slots == 0:
            return
        if layer not in self._pools:
            orders = [_order(part) for part in state]
            self._pools[layer] = [
                (_zeros(part.permute(order), self._slots), order)
                for part, order in zip(state, orders, strict=True)
            ]
        for (pool, order), part in zip(self._pools[layer], state, strict=True):
            pool.index_copy_(0, self._index, part.permute(order))

    def clear(self, slot: int) -> None:
        """Nothing is remembered in ``slot``."""
        for pools in self._pools.values():
            for pool, _ in pools:
                pool[slot].zero_()


def _order(state: Tensor) -> list[int]:
    """The dimensions behind the first as they lie in memory, the widest step first."""
    rest = sorted(range(1, state.dim()), key=state.stride, reverse=True)
    return [0, *rest]


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _zeros(state: Tensor, slots: int) -> Tensor:
    return state.new_zeros(slots, *state.shape[1:])
