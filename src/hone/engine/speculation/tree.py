"""Which guesses of several heads are worth a place in a pass: a sparse tree.

Head i guesses the token i places after the next one; a node at depth d stands for one of the
likeliest guesses of head d, after one path of guesses of the heads before it (Cai et al. 2024,
section 2.1 and "Searching for the optimized tree construction", section 2.3.3).
"""

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes in the order of falling worth, so that the first n are the best tree of n nodes.

    Attributes:
        paths: of each node, which guess (0 is a head's likeliest) of the first head, the second ...
        worth: how often each was found to come true.
    """

    paths: tuple[tuple[int, ...], ...]
    worth: tuple[float, ...]

    @property
    def parents(self) -> list[int]:
        """The number of each node's parent; -1 for the tree's root, which is no node."""
        numbers = {path: number for number, path in enumerate(self.paths)}
        return [numbers.get(path[:-1], -1) for path in self.paths]

    @property
    def guesses(self) -> int:
        """How many guesses of a head are used."""
        return 1 + max(path[-1] for path in self.paths)


def choose_tree(accuracies_KR: Seq[Seq[float]], most: int) -> Tree:
    """The tree of at most ``most`` nodes of which most tokens come true on average.

    A node comes true as often as all guesses on its path do, taken as independent; that falls along
    a path, so that taking the best node next, again and again, is optimal.

    Args:
        accuracies_KR: how often the guess r of head k is right.
    """

    def worth(path: tuple[int, ...]) -> float:
        product = 1.0
        for head, guess in enumerate(path):
            product *= accuracies_KR[head][guess]
        return product

    paths: list[tuple[int, ...]] = []
    worths: list[float] = []
    waiting: list[tuple[float, tuple[int, ...]]] = []
    before: tuple[int, ...] = ()
    while len(paths) < most:
        if len(before) < len(accuracies_KR):
            for guess in range(len(accuracies_KR[len(before)])):
                child = (*before, guess)
                heapq.heappush(waiting, (-worth(child), child))
        if not waiting or not waiting[0][0]:
            break
        value, before = heapq.heappop(waiting)
        paths.append(before)
        worths.append(-value)
    return Tree(tuple(paths), tuple(worths))
