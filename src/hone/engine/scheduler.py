"""What each step computes: {sequence: number of tokens}, under a budget of tokens.

There are no phases. A prompt, a piece of one, what a prefix hit left over, one new token and one
with guesses behind it are all so many tokens of a sequence that have no keys and values yet.
"""

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple

from hone.engine.blocks import BlockPool
from hone.engine.policies import Policy
from hone.engine.sequence import Sequence
from hone.engine.waiting import WaitingLine


class Work(NamedTuple):
    """Tokens of one sequence in one step.

    Attributes:
        new: of ``sequence.tokens`` and its draft, from ``sequence.computed`` on.
        reads_source: the encoder reads its source in this step.
    """

    sequence: Sequence
    new: int
    reads_source: bool = False


@dataclass(slots=True)
class Schedule:
    """One step.

    Attributes:
        works: what is computed.
        copies: blocks that are copied to others first.
        fresh_slots: rows of the states that begin anew.
    """

    works: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    fresh_slots: list[int] = field(default_factory=list)


class Scheduler:
    """Those that run go first, in their order; then those that wait, as far as there is room.

    When blocks run out, the last in rank gives up its own and is computed again later.

    Attributes:
        running: in the order of rank.
        preemptions: so far.
    """

    def __init__(
        self,
        pool: BlockPool,
        policy: Policy,
        most_tokens: int,
        most_running: int,
        chunk_multiple: int = 1,
        long_from: int | None = None,
    ) -> None:
        """Nothing runs.

        Args:
            most_tokens: of a step.
            most_running: sequences at a time; other outputs of a running request come on top.
            chunk_multiple: a prompt is cut only at multiples of this.
            long_from: from this length on, keys depend on the length of what they are part of;
                None where they never do.
        """
        self.pool, self._policy = pool, policy
        self._most_tokens, self._most_running = most_tokens, most_running
        self._chunk_multiple, self._long_from = chunk_multiple, long_from
        self.running: list[Sequence] = []
        self.waiting = WaitingLine()
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self.waiting.arrive(sequence)
        self.waiting.push(sequence)

    def join(self, sequence: Sequence, parent: Sequence) -> None:
        """Another output of a request runs, on the blocks of the first."""
        self.pool.hold(parent.blocks)
        self.pool.hold(parent.source_blocks)
        sequence.blocks, sequence.source_blocks = [*parent.blocks], [*parent.source_blocks]
        sequence.computed, sequence.floor = parent.computed, parent.floor
        sequence.hashes, sequence.cached = [*parent.hashes], parent.cached
        self.waiting.arrive(sequence)
        insort(self.running, sequence, key=lambda other: other.rank)

    def remove(self, sequence: Sequence) -> None:
        """``sequence`` is done, or taken back, and gives its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.waiting.leave(sequence)
        self._give_back(sequence)

    def delay(self, now: float) -> float:
        """Seconds until a step has something to do, if nothing new comes."""
        return self._policy.delay(now, len(self.running), self.waiting)

    def schedule(self, now: float) -> Schedule:
        """The next step; blocks for it are taken."""
        step, left = Schedule(), self._most_tokens
        preempted = False
        for sequence in list(self.running):
            if left == 0:
                break
            if sequence not in self.running:  # it has just lost its blocks to one before it
                break
            new = self._share(sequence, left)
            while new and not self._reserve(sequence, sequence.computed + new, step):
                if sequence.draft is not None:
                    sequence.draft = None
                    new = self._share(sequence, left)
                    continue
                preempted = True
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    new = 0
            if new:
                left -= self._take(sequence, new, step)
        if not preempted:
            self._admit(now, left, step)
        return step

    def _admit(self, now: float, left: int, step: Schedule) -> None:
        while left > 0 and (sequence := self.waiting.first()) is not None:
            outputs = 1 + len(sequence.siblings)
            if self.running and len(self.running) + outputs > self._most_running:
                return
            if not self._policy.admits(now, len(self.running), self.waiting):
                return
            source = 0 if sequence.source_blocks else len(sequence.source)
            if source > left and step.works:
                return
            found = self._find(sequence)
            self.pool.hold(found)
            sequence.blocks, sequence.computed = found, len(found) * self.pool.size
            new = self._share(sequence, max(1, left - source))
            needed = self.pool.blocks_for(sequence.computed + new) - len(found)
            needed += self.pool.blocks_for(source)
            # A block for each that runs, so that the next steps need not preempt; a state never
            # needs a second one.
            growing = len(self.running) if self.pool.size else 0
            if not new or needed + growing > self.pool.free:
                self._give_back(sequence)
                return
            self.waiting.pop()
            self._policy.admitted()
            insort(self.running, sequence, key=lambda other: other.rank)
            if sequence.cached < 0:
                sequence.cached = min(sequence.computed, sequence.prompt_length)
                self.pool.queries += sequence.prompt_length
                self.pool.hits += sequence.cached
            sequence.source_blocks = self.pool.allocate(self.pool.blocks_for(source))
            self._reserve(sequence, sequence.computed + new, step)
            if not self.pool.size:
                sequence.slot = sequence.blocks[0]
                step.fresh_slots.append(sequence.slot)
            left -= self._take(sequence, new, step, source)

    def _take(self, sequence: Sequence, new: int, step: Schedule, source: int = 0) -> int:
        """Have ``new`` tokens computed, and so many of a source; how many that are."""
        step.works.append(Work(sequence, new, source > 0))
        self.waiting.served(sequence.request.owner, new + source)
        return new + source

    def _share(self, sequence: Sequence, left: int) -> int:
        """How many of its pending tokens it may compute."""
        pending = sequence.pending
        if pending <= left:
            return pending
        if sequence.draft is not None:
            # Guesses are dropped from the end, where no other one stands on them.
            sequence.draft = sequence.draft.first(left - (pending - len(sequence.draft.tokens)))
            return min(sequence.pending, left)
        end = sequence.computed + left
        end -= end % self._chunk_multiple
        if self._chunk_multiple > 1 and len(sequence.tokens) - end == 1:
            end -= self._chunk_multiple  # a lone token would be computed in another way
        return max(0, end - sequence.computed)

    def _find(self, sequence: Sequence) -> list[int]:
        """Blocks that remember its beginning; at least one token is left to compute."""
        if not self.pool.sharing or sequence.request.embed:
            return []
        salt = self._salt(sequence)
        hashes = self.pool.hashes(sequence.tokens, sequence.hashes, salt)
        return self.pool.find(hashes, (len(sequence.tokens) - 1) // self.pool.size)

    def _reserve(self, sequence: Sequence, positions: int, step: Schedule) -> bool:
        """Take the blocks that are missing for so many positions; False where there are too few.

        A block that others hold too is copied before anything is written to it.
        """
        pool, table = self.pool, sequence.blocks
        missing = pool.blocks_for(positions) - len(table)
        first = sequence.computed // pool.size if pool.size else len(table)
        shared = [i for i in range(first, len(table)) if pool.is_shared(table[i])]
        if max(missing, 0) + len(shared) > pool.free:
            return False
        for place in shared:
            (copy,) = pool.allocate(1)
            step.copies.append((table[place], copy))
            pool.release([table[place]])
            table[place] = copy
        if missing > 0:
            table.extend(pool.allocate(missing))
        return True

    def remember(self, sequence: Sequence, before: int) -> None:
        """Full blocks that were computed since ``before`` can be found by others from now on."""
        size = self.pool.size
        if not self.pool.sharing or sequence.request.embed:
            return
        first, end = before // size, sequence.computed // size
        if first < end:
            hashes = self.pool.hashes(
                sequence.tokens[: end * size], sequence.hashes, self._salt(sequence)
            )
            for number in range(first, end):
                self.pool.remember(sequence.blocks[number], hashes[number])

    def take_back(self, step: Schedule) -> None:
        """Nothing of ``step`` was computed, or not all: all that it is made of begins anew."""
        for work in step.works:
            self._preempt(work.sequence)

    def restart(self, sequence: Sequence, floor: int) -> None:
        """Compute all of a running ``sequence`` again, as one of length ``floor`` at least."""
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0
        sequence.floor, sequence.hashes = floor, []

    def _preempt(self, victim: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(victim)
        self._give_back(victim)
        victim.draft = None
        self.waiting.push(victim)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        self.pool.release(sequence.source_blocks)
        sequence.blocks, sequence.source_blocks, sequence.computed = [], [], 0

    def _salt(self, sequence: Sequence) -> bytes:
        """What tells apart the keys and values of equal tokens."""
        long = self._long_from is not None and sequence.floor >= self._long_from
        told = (sequence.adapter, sequence.source, sequence.floor if long else 0)
        return repr(told).encode() if any(told) else b""
