"""How many tokens are worth guessing, from how many came true and from what a pass costs.

A drafted token comes true with the probability a, given that the one before it did. k of them bring
(1 - a^(k+1)) / (1 - a) tokens on average, the model's own included (Leviathan et al. 2023, equation
1). Tokens per second are what counts, of all sequences of a pass together: more rows make the pass
slower for everybody.

Shapes: B sequences, K drafted tokens.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# What is remembered of earlier drafts, after each further one.
_KEPT = 0.9
_KEPT_OF_ALL = 0.99
# What is known of a sequence counts little before it had so many chances.
_CHANCES_OF_ALL = 4.0
# Before anything is known.
_FIRST_SHARE, _FIRST_CHANCES = 0.6, 4.0
_HIGHEST = 0.98
# Steps between two attempts where guessing does not pay: at first, at most; and steps of each.
_REST, _LONGEST_REST, _ATTEMPT = 16, 1024, 3
# Of the tokens of an attempt.
_ATTEMPTED = 2
# Of the mean of passes, the longest that is believed.
_LONGEST = 5.0
# With always as many rows nobody knows what a row costs: every so many steps has none to spare.
_PLAIN_EVERY = 32


class Costs(NamedTuple):
    """Seconds, or anything in proportion to them.

    Attributes:
        step: of a pass that guesses nothing.
        row: of each further token of it.
        draft: of guessing, however many tokens.
        level: of each further token of the longest draft, where drafting goes token by token.
    """

    step: float
    row: float
    draft: float = 0.0
    level: float = 0.0


def expected_tokens(share: float, count: int) -> float:
    """How many tokens a draft of ``count`` brings on average, the model's own included.

    Args:
        share: of drafted tokens that come true, given that those before did; 0 to 1.
    """
    return count + 1.0 if share == 1 else (1 - share ** (count + 1)) / (1 - share)


def best_length(share: float, most: int, costs: Costs) -> int:
    """The length of draft, up to ``most``, with most tokens per second for one sequence alone."""

    def speed(count: int) -> float:
        drafting = costs.draft + count * (costs.row + costs.level) if count else 0.0
        return expected_tokens(share, count) / (costs.step + drafting)

    return max(range(most + 1), key=speed)


def best_lengths(gains_BK: Floats, limits_B: Seq[int], costs: Costs) -> list[int]:
    """The lengths of drafts with most tokens per second for all sequences of a pass together.

    A ratio of sums is greatest where every token that raises it is taken, the likeliest first; with
    drafts made token by token that is so for each depth of the longest, of which the best is found.

    Args:
        gains_BK: what each further drafted token brings on average; falling along K.
        limits_B: most tokens of each sequence.
        costs: of the pass; ``step`` is that of B rows.
    """
    count, most = gains_BK.shape
    most = min(most, max(limits_B, default=0))
    if most <= 0:
        return [0] * count
    allowed_BK = np.arange(most) < np.asarray(limits_B)[:, None]
    gains_BK = np.where(allowed_BK, gains_BK[:, :most], 0.0)
    best, lengths_B = count / costs.step, np.zeros(count, dtype=np.int64)
    for depth in range(1, most + 1) if costs.level else (most,):
        gains = gains_BK[:, :depth].ravel()
        order = np.argsort(-gains, kind="stable")
        drafting = costs.draft + depth * costs.level
        rows = np.arange(1, len(gains) + 1)
        speeds = (count + gains[order].cumsum()) / (costs.step + drafting + costs.row * rows)
        taken = int(speeds.argmax())
        if speeds[taken] > best:
            best = speeds[taken]
            lengths_B = np.bincount(order[: taken + 1] // depth, minlength=count)
    return np.minimum(lengths_B, limits_B).tolist()


@dataclass(slots=True)
class _Record:
    """Drafted tokens that came true, and those that had the chance to, the latest most."""

    hits: float = 0.0
    chances: float = 0.0

    def add(self, hits: float, chances: float, kept: float) -> None:
        self.hits = kept * self.hits + hits
        self.chances = kept * self.chances + chances


class Acceptance:
    """What became of each sequence's drafts, and of all.

    In a chain a chance is a token whose predecessors all came true: hits by chances are a. In a
    tree chances are what was expected to come true, and hits by chances correct the expectation.
    """

    def __init__(self, curve: Seq[float] | None = None) -> None:
        """Nothing is known.

        Args:
            curve: of trees, how often each node was found to come true, the first most; None for
                chains.
        """
        self._curve = None if curve is None else np.asarray(curve, dtype=np.float64)
        first = _FIRST_SHARE if curve is None else 1.0
        self._all = _Record(first * _FIRST_CHANCES, _FIRST_CHANCES)
        self._of: dict[int, _Record] = {}

    def add(self, key: int, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens of sequence ``key`` so many came true, one after another."""
        if not drafted:
            return
        if self._curve is None:
            chances = float(min(accepted + 1, drafted))
        else:
            chances = float(self._curve[:drafted].sum())
        self._of.setdefault(key, _Record()).add(accepted, chances, _KEPT)
        self._all.add(accepted, chances, _KEPT_OF_ALL)

    def forget(self, key: int) -> None:
        """The sequence is gone; what it taught of all stays."""
        self._of.pop(key, None)

    def share(self, key: int) -> float:
        """Hits by chances of a sequence; where little is known of it, of all."""
        overall = self._all.hits / self._all.chances
        own = self._of.get(key)
        if own is None:
            return overall
        return (own.hits + _CHANCES_OF_ALL * overall) / (own.chances + _CHANCES_OF_ALL)

    def gains(self, keys: Seq[int], most: int) -> Floats:
        """What each of ``most`` further drafted tokens of each sequence brings, ``[B, K]``."""
        share_B1 = np.array([self.share(key) for key in keys])[:, None]
        if self._curve is None:
            return np.minimum(share_B1, _HIGHEST) ** np.arange(1, most + 1)
        curve_K = np.zeros(most)
        curve_K[: len(self._curve)] = self._curve[:most]
        return share_B1 * curve_K


class PassTimes:
    """What a pass costs: seconds = a + b · rows, fitted to the passes so far.

    What a pass takes changes as texts grow, so the latest count most; what a row costs changes
    less, and is remembered for longer, as passes may have the same rows for long.
    """

    _NEW, _KEPT = 0.1, 0.998
    # So many passes, with other rows than those before, tell what a row costs.
    _ENOUGH = 5

    def __init__(self) -> None:
        self._rows = self._seconds = 0.0
        self._squares = self._products = 0.0
        self._different = 0

    def add(self, rows: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        if not self._rows:
            self._rows, self._seconds = rows, seconds
            return
        more = rows - self._rows
        # What takes far longer was interrupted by something else.
        longer = min(seconds, _LONGEST * self._seconds) - self._seconds
        self._different += abs(more) > 0.5
        self._squares = self._KEPT * self._squares + more * more
        self._products = self._KEPT * self._products + more * longer
        self._rows += self._NEW * more
        self._seconds += self._NEW * longer

    @property
    def known(self) -> bool:
        """Whether passes were different enough to tell what a row costs."""
        return self._different >= self._ENOUGH

    def line(self, rows: int) -> tuple[float, float]:
        """Seconds of a pass of ``rows``, and of one more row, once that is known."""
        if not self.known:
            return 1.0, 0.0
        slope = max(self._products / self._squares, 0.0)
        at = self._seconds + slope * (rows - self._rows)
        # Far from what was seen a line may lead anywhere; a pass of fewer rows costs something.
        return max(at, 0.1 * self._seconds), slope


class Lengths:
    """Chooses the length of each sequence's next draft; 0 where guessing does not pay.

    Where it does not, it is tried again now and then, less and less often. Deterministic in what it
    is told.

    Attributes:
        acceptance: what became of drafts.
        passes: what passes cost.
    """

    def __init__(self, most: int, stepwise: bool = False, curve: Seq[float] | None = None) -> None:
        """Nothing is known.

        Args:
            most: tokens of a draft.
            stepwise: drafts are made token by token.
            curve: see :class:`Acceptance`.
        """
        self._most, self._stepwise = most, stepwise
        self.acceptance, self.passes = Acceptance(curve), PassTimes()
        self._drafting = 0.0  # seconds of a draft, or of a token of it where that is what counts
        self._step = 0
        self._rest, self._next = _REST, 0

    def drafted(self, seconds: float, longest: int) -> None:
        """Drafts of up to ``longest`` tokens took so long to make."""
        one = seconds / max(longest, 1) if self._stepwise else seconds
        # Some take longer: a prompt was read, or the machine was busy.
        weight = 1.0 if not self._drafting else 0.5 if one < self._drafting else 0.05
        self._drafting += weight * (one - self._drafting)

    def choose(self, keys: Seq[int], limits: Seq[int]) -> list[int]:
        """The lengths for the next pass, of at most ``limits``."""
        self._step += 1
        limits = [min(limit, self._most) for limit in limits]
        step, row = self.passes.line(len(keys))
        if not self.passes.known:
            # Every other pass, as it takes both kinds to know.
            room = max(_ATTEMPTED, len(keys) // 2)
            return self._attempt(limits, room) if self._step % 2 else [0] * len(keys)
        costs = Costs(step, row, *((0.0, self._drafting) if self._stepwise else (self._drafting,)))
        lengths = best_lengths(self.acceptance.gains(keys, self._most), limits, costs)
        if all(n or not limit for n, limit in zip(lengths, limits, strict=True)):
            self._rest, self._next = _REST, self._step + _REST
            return [0] * len(keys) if self._step % _PLAIN_EVERY == 0 else lengths
        if self._step < self._next:
            return lengths
        if self._step >= self._next + _ATTEMPT:
            self._rest = min(2 * self._rest, _LONGEST_REST)
            self._next = self._step + self._rest
            return lengths
        # No more than may double what the pass takes.
        room = int(min(step / row, 1e6)) if row else 10**6
        left = [0 if n else limit for n, limit in zip(lengths, limits, strict=True)]
        attempts = self._attempt(left, room)
        return [n or attempt for n, attempt in zip(lengths, attempts, strict=True)]

    def _attempt(self, limits: Seq[int], room: int) -> list[int]:
        """A few tokens for some sequences, others each time: ``room`` tokens, at least one."""
        lengths = [0] * len(limits)
        for turn in range(len(limits)):
            place = (self._step + turn) % len(limits)
            lengths[place] = min(limits[place], _ATTEMPTED, max(room, 1))
            room -= lengths[place]
            if room <= 0:
                break
        return lengths
