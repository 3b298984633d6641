"""Who waits for the engine, and who is next."""

import heapq
from collections import Counter

from hone.engine.sequence import Sequence


class WaitingLine:
    """By priority first; then the owner who has been served least; then by arrival.

    Service is counted in tokens computed. An owner who comes back after a pause does not find a
    credit for the time away: service begins at that of the least served of those who are there
    (virtual token counter; Sheng et al. 2024, section 4.2).
    """

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, list[tuple[tuple[int, int, int], int, Sequence]]]] = {}
        self._served: Counter[str] = Counter()
        self._live: Counter[str] = Counter()  # sequences of each owner, running ones included
        self._count = 0
        self._removed: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def arrive(self, sequence: Sequence) -> None:
        """A new sequence of its owner is there, to wait or to run at once."""
        owner = sequence.request.owner
        if not self._live[owner]:
            others = [self._served[name] for name, live in self._live.items() if live]
            if others:
                self._served[owner] = max(self._served[owner], min(others))
        self._live[owner] += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence is done, wherever it was."""
        owner = sequence.request.owner
        self._live[owner] -= 1
        if not self._live[owner]:
            del self._live[owner]
            if not self._live:
                self._served.clear()

    def served(self, owner: str, tokens: int) -> None:
        """So many tokens of ``owner`` were computed."""
        self._served[owner] += tokens

    def push(self, sequence: Sequence) -> None:
        """``sequence`` waits, for the first time or again."""
        line = self._lines.setdefault(sequence.request.priority, {})
        heap = line.setdefault(sequence.request.owner, [])
        heapq.heappush(heap, (sequence.rank, sequence.key, sequence))
        self._count += 1

    def first(self) -> Sequence | None:
        """Who is next; None when nobody waits."""
        for priority in sorted(self._lines):
            line = self._lines[priority]
            for owner in list(line):
                heap = line[owner]
                while heap and heap[0][1] in self._removed:
                    self._removed.discard(heapq.heappop(heap)[1])
                if not heap:
                    del line[owner]
            if line:
                owner = min(line, key=lambda name: (self._served[name], line[name][0][0]))
                return line[owner][0][2]
            del self._lines[priority]
        return None

    def pop(self) -> Sequence:
        """Take out whom :meth:`first` names."""
        sequence = self.first()
        assert sequence is not None, "nobody waits"
        heapq.heappop(self._lines[sequence.request.priority][sequence.request.owner])
        self._count -= 1
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """``sequence``, which waits, does so no more."""
        self._removed.add(sequence.key)
        self._count -= 1

    def oldest(self) -> float:
        """When the one that waits longest arrived; infinity when nobody waits."""
        every = (
            entry[2].since
            for line in self._lines.values()
            for heap in line.values()
            for entry in heap
            if entry[1] not in self._removed
        )
        return min(every, default=float("inf"))
