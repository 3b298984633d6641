"""What a proposer of tokens is: it guesses, and the model checks all guesses in one pass.

Shapes: R sequences, E hidden.
"""

from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from hone.engine.sequence import Draft, Sequence

NOTHING = Draft([])


class Proposer(Protocol):
    """Guesses how sequences go on. What it guesses decides how fast a sequence grows, never how."""

    @property
    def stepwise(self) -> bool:
        """Whether each further token of the longest draft costs a further pass."""

    def propose(self, sequences: Seq[Sequence], most: Seq[int]) -> list[Draft]:
        """A draft for each sequence, of at most so many tokens; an empty one for no idea.

        Args:
            sequences: those whose last token is the only one that the model has not read.
        """

    def observe(self, sequences: Seq[Sequence], hidden_RE: Tensor) -> None:
        """A pass is over.

        Args:
            sequences: those that got tokens.
            hidden_RE: the body's hidden states from which the last token of each was chosen.
        """

    def forget(self, sequence: Sequence) -> None:
        """``sequence`` is gone."""
