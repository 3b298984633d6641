"""Speculation as the engine uses it: a proposer, and how much is asked of it."""

import time
from collections.abc import Sequence as Seq

from torch import Tensor

from hone.engine.sequence import Draft, Sequence
from hone.engine.speculation.adaptive import Lengths
from hone.engine.speculation.proposer import NOTHING, Proposer


class Speculation:
    """Asks a proposer for as many tokens as pay, and is told what became of them.

    Attributes:
        proposer: who guesses.
        lengths: how much is asked, and what that is decided by.
        drafted, accepted: tokens so far.
    """

    def __init__(self, proposer: Proposer, most: int, curve: Seq[float] | None = None) -> None:
        """Guess with ``proposer``.

        Args:
            most: tokens of a draft.
            curve: see :class:`hone.engine.speculation.adaptive.Acceptance`.
        """
        self.proposer, self.lengths = proposer, Lengths(most, proposer.stepwise, curve)
        self.drafted = self.accepted = 0
        self._rows = 0

    def propose(self, sequences: Seq[Sequence], limits: Seq[int]) -> list[Draft]:
        """A draft for each sequence, of at most so many tokens; empty ones where none pays.

        Args:
            sequences: those whose last token is the only one that the model has not read.
        """
        chosen = self.lengths.choose([sequence.key for sequence in sequences], limits)
        drafts = [NOTHING] * len(sequences)
        self._rows = len(sequences)
        wanted = [place for place, length in enumerate(chosen) if length]
        if wanted:
            start = time.perf_counter()
            found = self.proposer.propose(
                [sequences[place] for place in wanted], [chosen[place] for place in wanted]
            )
            longest = max(chosen[place] for place in wanted)
            self.lengths.drafted(time.perf_counter() - start, longest)
            for place, draft in zip(wanted, found, strict=True):
                drafts[place] = draft
                self._rows += len(draft.tokens)
        return drafts

    def checked(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Of so many drafted tokens of ``sequence`` that a pass read, so many came true."""
        self.drafted += drafted
        self.accepted += accepted
        self.lengths.acceptance.add(sequence.key, drafted, accepted)

    def took(self, rows: int, seconds: float) -> None:
        """The pass after :meth:`propose` had so many rows and took so long."""
        # With more there were prompts among them, whose tokens cost something else.
        if rows <= self._rows:
            self.lengths.passes.add(rows, seconds)
        self._rows = 0

    def observe(self, sequences: Seq[Sequence], hidden_RE: Tensor) -> None:
        """A pass is over; see :class:`Proposer`."""
        self.proposer.observe(sequences, hidden_RE)

    def forget(self, sequence: Sequence) -> None:
        """``sequence`` is gone."""
        self.lengths.acceptance.forget(sequence.key)
        self.proposer.forget(sequence)
