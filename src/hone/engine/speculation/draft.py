"""A smaller model guesses what a larger one will say (Leviathan et al. 2023; Chen et al. 2023).

Shapes: N tokens of a pass, R sequences, E hidden, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hone.engine.memory import make_cache
from hone.engine.options import EngineOptions
from hone.engine.paged import Row
from hone.engine.sequence import Draft, Sequence
from hone.engine.speculation.proposer import NOTHING
from hone.models import CausalLM

# Tokens of prompts that are read between two passes of the larger model, of all sequences.
_READ_AT_ONCE = 512


@dataclass(slots=True)
class _Reading:
    """What the smaller model has read of a sequence.

    Attributes:
        tokens: those with keys and values in ``blocks``; guesses among them.
        sure: so many of them are the sequence's own.
    """

    blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sure: int = 0

    def compare(self, tokens: Seq[int]) -> None:
        """Forget guesses that did not come true; the last token is to be read in any case."""
        end = min(len(self.tokens), len(tokens) - 1)
        while self.sure < end and self.tokens[self.sure] == tokens[self.sure]:
            self.sure += 1
        del self.tokens[self.sure :]


@dataclass(slots=True)
class _Guess:
    """One sequence for the time of a proposal."""

    reading: _Reading
    new: list[int]
    most: int
    tokens: list[int] = field(default_factory=list)


class DraftModelProposer:
    """Continues each sequence greedily with another model, which has a cache of its own."""

    stepwise = True

    def __init__(self, model: CausalLM, vocabulary: int, options: EngineOptions) -> None:
        """Take the memory for the cache.

        Args:
            model: reads the same token ids as the larger one.
            vocabulary: ids below it are the larger model's.
            options: of the engine, for the size of the cache.

        Raises:
            CapacityError: there is no memory for the cache.
        """
        self._model = model
        self._vocabulary = min(vocabulary, model.config.vocab_size)
        self._cache, self._pool = make_cache(model, options, exact=False)
        self._readings: dict[int, _Reading] = {}

    @torch.inference_mode()
    def propose(self, sequences: Seq[Sequence], most: Seq[int]) -> list[Draft]:
        """See :class:`Proposer`; prompts are read a piece at a time, with no guess until then."""
        guesses: dict[int, _Guess] = {}
        left = _READ_AT_ONCE
        for place, (sequence, limit) in enumerate(zip(sequences, most, strict=True)):
            if limit > 0 and (guess := self._begin(sequence, limit, left)) is not None:
                guesses[place] = guess
                left -= len(guess.new) - 1
        active = list(guesses.values())
        while active:
            self._pass(active)
            active = [guess for guess in active if guess.new]
        return [
            Draft(guesses[place].tokens) if place in guesses else NOTHING
            for place in range(len(sequences))
        ]

    def _begin(self, sequence: Sequence, most: int, left: int) -> _Guess | None:
        """What is to be read of a sequence first, if there is room for it."""
        tokens, config = sequence.tokens, self._model.config
        too_long = len(tokens) + most > config.max_position_embeddings
        if too_long and not config.extrapolates:
            return None
        reading = self._readings.setdefault(sequence.key, _Reading())
        reading.compare(tokens)
        new = tokens[reading.sure : reading.sure + 1 + max(left, 0)]
        if max(new) >= self._vocabulary:
            return None
        if reading.sure + len(new) < len(tokens):
            most = 0
        table = reading.blocks
        missing = self._pool.blocks_for(reading.sure + len(new) + most) - len(table)
        if missing > self._pool.free:
            return None
        if missing > 0:
            table.extend(self._pool.allocate(missing))
        return _Guess(reading, new, most)

    def _pass(self, guesses: Seq[_Guess]) -> None:
        """Read what is new of each sequence, and guess a token where all is read."""
        model, rows, ids, last = self._model, [], list[int](), []
        for guess in guesses:
            reading, new = guess.reading, guess.new
            rows.append(Row(reading.blocks, len(reading.tokens), len(new)))
            ids += new
            last.append(len(ids) - 1)
            reading.tokens += new
            if not guess.tokens:
                reading.sure = len(reading.tokens)
            guess.new = []
        self._cache.begin(rows)
        guessing = [number for number, guess in enumerate(guesses) if guess.most]
        keep_R = torch.tensor([last[number] for number in guessing], dtype=torch.int64)
        hidden_RE = model.decoder(
            torch.tensor(ids, device=model.device),
            self._cache.positions().to(model.device),
            self._cache,
            keep_R.to(model.device),
        )
        if not guessing:
            return
        logits_RV = model.logits(hidden_RE)[:, : self._vocabulary]
        for number, token in zip(guessing, logits_RV.argmax(-1).tolist(), strict=True):
            guess = guesses[number]
            guess.tokens.append(token)
            if len(guess.tokens) < guess.most:
                guess.new = [token]

    def observe(self, sequences: Seq[Sequence], hidden_RE: Tensor) -> None:
        """See :class:`Proposer`; nothing is learnt from it."""

    def forget(self, sequence: Sequence) -> None:
        """See :class:`Proposer`."""
        reading = self._readings.pop(sequence.key, None)
        if reading is not None:
            self._pool.release(reading.blocks)
