"""How sequences lie for attention: the same groups as ``hone.kernels.packed`` makes of them.

N tokens, T the longest sequence of a group, H query heads, K key/value heads, D head size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Those of ``hone.kernels.packed``; a test holds them against it.
LEAST_SHARE = 0.88
BLOCK = 128
UNCUT = 192
LONGEST_KEPT = 1024


class Group(NamedTuple):
    """Sequences that are padded to the same length."""

    sequences: int
    length: int


@dataclass(frozen=True)
class Pack:
    """Sequences behind one another.

    Attributes:
        lengths: of each.
    """

    lengths: tuple[int, ...]

    @cached_property
    def tokens(self) -> int:
        """N."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """See ``PackedLayout``: a sequence joins a group while it has a share of its longest."""
        left, groups = sorted(self.lengths), []
        while left:
            members = [length for length in left if length >= LEAST_SHARE * left[-1]]
            groups.append(Group(len(members), left[-1]))
            left = left[: len(left) - len(members)]
        return tuple(groups)

    @cached_property
    def slots(self) -> int:
        """Tokens and the padding of groups."""
        return sum(group.sequences * group.length for group in self.groups)

    @property
    def even(self) -> bool:
        """All sequences have the same length."""
        return len(set(self.lengths)) == 1

    @property
    def ragged(self) -> bool:
        """There is padding in a group."""
        return self.slots > self.tokens


def probabilities(group: Group, heads: int, causal: bool) -> int:
    """Probabilities of a group's attention, all heads; those that causality hides are left out
    where they are whole blocks.
    """
    count, length = group
    if length <= UNCUT or not causal:
        return count * heads * length * length
    full, rest = divmod(length, BLOCK)
    seen = BLOCK * BLOCK * full * (full + 1) // 2 + rest * length
    return count * heads * seen


def largest_part(group: Group, heads: int, kv_heads: int, causal: bool) -> int:
    """Probabilities of the largest product that a group is cut into."""
    count, length = group
    if length <= UNCUT:
        return count * heads * length * length
    return count * kv_heads * min(BLOCK, length) * length


def last_part(group: Group, heads: int, kv_heads: int) -> int:
    """Probabilities of the last product of a group."""
    count, length = group
    if length <= UNCUT:
        return count * heads * length * length
    return count * kv_heads * (length % BLOCK or BLOCK) * length
