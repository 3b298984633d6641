"""Deterministic splits in which related items stay together."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from hone.core.errors import ConfigError
from hone.core.seeds import rng

Item = TypeVar("Item")


def split_groups(
    items: Sequence[Item],
    held_out: float,
    seed: int,
    key: Callable[[Item], Hashable] | None = None,
) -> tuple[list[Item], list[Item]]:
    """Split into (training, held out), both in the order of ``items``.

    Args:
        items: what to split.
        held_out: the share to hold out, between 0 and 1; whole groups are held out until it is
            reached, and never so many that a side is empty when there are two groups or more.
        seed: the same seed gives the same split.
        key: items with the same key go to the same side (e.g. the SQL, so that no held-out query
            was trained on). By default each item is alone.

    Raises:
        ConfigError: ``held_out`` is not between 0 and 1.
    """
    if not 0.0 <= held_out < 1.0:
        raise ConfigError(f"The held-out share must be at least 0 and below 1, not {held_out}.")
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(index if key is None else key(item), []).append(index)
    order = list(groups)
    rng(seed, "split").shuffle(order)
    wanted = held_out * len(items)
    chosen: set[int] = set()
    for name in order[: len(order) - 1]:
        if len(chosen) >= wanted:
            break
        chosen.update(groups[name])
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )
