"""Prompt look-up: what followed the last few tokens when they stood in the text before.

After Saxena 2023, "Prompt Lookup Decoding", and Yang et al. 2023, "Inference with Reference".
"""

from collections.abc import Sequence as Seq

from torch import Tensor

from hone.core.errors import ConfigError
from hone.engine.sequence import Draft, Sequence
from hone.engine.speculation.proposer import NOTHING


class _Index:
    """Where each n-gram of a text last ended, without those that end with its last token."""

    __slots__ = ("ends", "indexed")

    def __init__(self) -> None:
        self.ends: dict[tuple[int, ...], int] = {}
        self.indexed = 0

    def extend(self, tokens: Seq[int], least: int, most: int) -> None:
        """Take in what is new, the last token aside."""
        ends = self.ends
        for end in range(self.indexed + 1, len(tokens)):
            for n in range(least, min(most, end) + 1):
                ends[tuple(tokens[end - n : end])] = end
            self.indexed = end


class NgramProposer:
    """Finds the longest suffix of the text that stands in it before, and copies what came next.

    The latest place counts. A copy that reaches the end of the text goes on with itself, so that
    repetition is continued.
    """

    stepwise = False

    def __init__(self, least: int = 2, most: int = 4) -> None:
        """Look for suffixes of ``least`` to ``most`` tokens.

        Raises:
            ConfigError: these are no lengths.
        """
        if not 1 <= least <= most:
            raise ConfigError(
                f"N-grams of {least} to {most} tokens cannot be looked up; give 1 or more, and the "
                "shorter one first."
            )
        self._least, self._most = least, most
        self._indices: dict[int, _Index] = {}

    def propose(self, sequences: Seq[Sequence], most: Seq[int]) -> list[Draft]:
        """See :class:`Proposer`."""
        return [
            self._propose(sequence, limit) if limit > 0 else NOTHING
            for sequence, limit in zip(sequences, most, strict=True)
        ]

    def _propose(self, sequence: Sequence, limit: int) -> Draft:
        tokens = sequence.tokens
        index = self._indices.get(sequence.key)
        if index is None:
            index = self._indices[sequence.key] = _Index()
        index.extend(tokens, self._least, self._most)
        for n in range(min(self._most, len(tokens) - 1), self._least - 1, -1):
            start = index.ends.get(tuple(tokens[-n:]))
            if start is not None:
                return Draft(_copy(tokens, start, limit))
        return NOTHING

    def observe(self, sequences: Seq[Sequence], hidden_RE: Tensor) -> None:
        """See :class:`Proposer`; nothing is learnt from it."""

    def forget(self, sequence: Sequence) -> None:
        """See :class:`Proposer`."""
        self._indices.pop(sequence.key, None)


def _copy(tokens: Seq[int], start: int, count: int) -> list[int]:
    """``count`` tokens from ``start``, the copied ones behind the others."""
    copied = list(tokens[start : start + count])
    period = len(copied)
    while len(copied) < count:
        copied.append(copied[-period])
    return copied


def propose_reference(tokens: Seq[int], limit: int, least: int, most: int) -> list[int]:
    """What :class:`NgramProposer` proposes, by looking everywhere."""
    for n in range(min(most, len(tokens) - 1), least - 1, -1):
        for start in range(len(tokens) - 1, n - 1, -1):
            if tokens[start - n : start] == tokens[-n:]:
                text = list(tokens)
                for i in range(limit):
                    text.append(text[start + i])
                return text[len(tokens) :]
    return []
