"""Outputs that must be something: JSON of a schema, a match of an expression, a choice, a language.

A grammar is compiled once by llguidance, which reads it byte by byte through the vocabulary. A
:class:`Matcher` follows one output, and says before each token which ones may come next.

The rules of an output under a grammar:

- a token that ends outputs may come when, and only when, the grammar may end;
- special tokens never come, and nothing but text is ever matched;
- once nothing but the end is possible the output has ended, whatever ``min_tokens`` says.

Shapes: R rows of a batch, W words of a bitmask (one bit per token, lowest first).
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from hone.core.errors import RequestError
from hone.engine.notation import NAMES, ByteVocabulary, check_grammar, compiled, notation, reason_of
from hone.engine.params import Grammar
from hone.engine.token_bytes import token_bytes
from hone.text.tokenizer import Tokenizer

Mask = NDArray[np.int32]
# What was found out after a few tokens: the mask, and llguidance's state with it.
Openings = dict[tuple[int, ...], tuple[Mask, LLMatcher]]

_KEPT = 64
# Where an output begins most is possible, so that its first masks take longest; and most outputs of
# a grammar begin alike. What follows so few tokens is kept, so many times for each grammar.
_OPENING, _MOST_OPENINGS = 3, 64
_BEFORE = "\n"


class Grammars:
    """Compiled grammars for one model; the last 64 are remembered. Several threads may compile."""

    def __init__(
        self, tokenizer: Tokenizer, end_ids: Collection[int], vocab_size: int | None = None
    ) -> None:
        """Read the vocabulary once.

        Args:
            tokenizer: the model's.
            end_ids: the model's tokens that end an output.
            vocab_size: the number of the model's scores, which may be more than there are tokens.
        """
        tokens = token_bytes(tokenizer)
        size = len(tokens) if vocab_size is None else vocab_size
        tokens = (tokens + [b""] * size)[:size]
        self._end_ids = frozenset(end for end in end_ids if 0 <= end < size)
        for end in self._end_ids:
            tokens[end] = b""
        self.vocab_size = size
        self.words = (size + 31) // 32
        # llguidance's own end is an id behind the last: which tokens end is a matter of requests.
        self._tokenizer = _Vocabulary(tokenizer, tokens).tokenizer()
        self._prototypes: OrderedDict[Grammar, tuple[LLMatcher, Openings]] = OrderedDict()
        self._lock = threading.Lock()  # of the dictionary, not of the compiling

    def __contains__(self, grammar: Grammar) -> bool:
        """It is compiled, and remembered."""
        with self._lock:
            return grammar in self._prototypes

    def compile(self, grammar: Grammar) -> None:
        """Check that ``grammar`` can be used, and keep it.

        Raises:
            RequestError: it is wrong, too large, or nothing can match it; the message says why.
        """
        self._prototype(grammar)

    def matcher(self, grammar: Grammar, ends: Collection[int] = ()) -> "Matcher":
        """A matcher at the beginning of an output.

        Args:
            grammar: what the output must be.
            ends: tokens that end this output, beside the model's own.

        Raises:
            RequestError: as :meth:`compile`.
        """
        prototype, openings = self._prototype(grammar)
        ended_by = self._end_ids.union(ends)
        return Matcher(prototype.deep_copy(), ended_by, self.vocab_size, openings)

    def fill(self, matchers: Sequence["Matcher | None"], mask_RW: Mask) -> None:
        """The bitmasks of many outputs at once; a row without a matcher becomes -1, all allowed."""
        for row, matcher in enumerate(matchers):
            if matcher is None:
                mask_RW[row] = -1
            else:
                matcher.fill(mask_RW[row])

    def _prototype(self, grammar: Grammar) -> "tuple[LLMatcher, Openings]":
        with self._lock:
            found = self._prototypes.get(grammar)
            if found is not None:
                self._prototypes.move_to_end(grammar)
                return found
        found = self._compiled(grammar)
        with self._lock:
            self._prototypes[grammar] = found
            if len(self._prototypes) > _KEPT:
                self._prototypes.popitem(last=False)
        return found

    def _compiled(self, grammar: Grammar) -> "tuple[LLMatcher, Openings]":
        if grammar.kind != "lark":  # a program's own; a server checks those of its clients
            check_grammar(grammar)
        found = compiled(self._tokenizer, notation(grammar))
        if isinstance(found, str):
            raise RequestError(f"The {NAMES[grammar.kind]} cannot be used: {found}.")
        mask_W, openings = np.zeros(self.words, np.int32), Openings()
        probe = Matcher(found.deep_copy(), self._end_ids, self.vocab_size, openings)
        probe.fill(mask_W)
        if probe.failed or not (probe.ended or mask_W.any()):
            why = probe.failed or "no token of the model can begin it"
            raise RequestError(f"The {NAMES[grammar.kind]} cannot be used: {why}.")
        return found, openings


class Matcher:
    """One output under a grammar.

    Attributes:
        ended: nothing but the end is possible, or the end was accepted.
        failed: why no further token can be judged (the grammar is too complex there), else "";
            then no token may come any more.
    """

    __slots__ = (
        "_ends",
        "_finished",
        "_inner",
        "_openings",
        "_scratch_W",
        "_size",
        "_tokens",
        "failed",
    )

    def __init__(
        self, inner: LLMatcher, ends: frozenset[int], size: int, openings: Openings
    ) -> None:
        self._inner, self._ends, self._openings = inner, ends, openings
        self._tokens: list[int] = []
        # With the bit of llguidance's own end, which may need one word more.
        self._size, self._scratch_W = size, np.zeros(size // 32 + 1, np.int32)
        self._finished = False
        self.failed = ""

    @property
    def may_end(self) -> bool:
        """Whether the output is whole as it stands."""
        return not self.failed and bool(self._inner.is_accepting())

    @property
    def ended(self) -> bool:  # noqa: D102 - told above
        return self._finished or (not self.failed and bool(self._inner.is_stopped()))

    def fill(self, mask_W: Mask) -> None:
        """Set the bit of each token that may come next, and clear all others."""
        if self.ended or self.failed:
            mask_W[:] = 0
        else:
            mask_W[:] = self._possible()[: len(mask_W)]
            if self._size % 32:
                _set_bit(mask_W, self._size, False)
        self._set_ends(mask_W)

    def accept(self, token: int) -> bool:
        """Take ``token``; False, and nothing has changed, when it may not come."""
        if self._finished or self.failed:
            return False
        if token in self._ends:
            self._finished = bool(self._inner.is_accepting())
            return self._finished
        known = self._known(token)
        if known is not None:
            self._inner = known[1].deep_copy()
        elif self._inner.try_consume_tokens([token]) != 1:
            self._look_for_errors()
            return False
        self._tokens.append(token)
        self._look_for_errors()
        return True

    def rollback(self, count: int) -> None:
        """Take the last ``count`` accepted tokens back."""
        if count and self._finished:
            self._finished = False
            count -= 1
        if count:
            self._inner.rollback(count)
            del self._tokens[-count:]

    def copy(self) -> "Matcher":
        """Another matcher that stands where this one does."""
        made = Matcher(self._inner.deep_copy(), self._ends, self._size, self._openings)
        made._tokens = self._tokens.copy()
        made._finished, made.failed = self._finished, self.failed
        return made

    def _possible(self) -> Mask:
        """The bitmask of the tokens that go on, as llguidance has it."""
        known = self._known()
        if known is not None:
            return known[0]
        scratch_W = self._scratch_W
        self._inner.unsafe_compute_mask_ptr(scratch_W.ctypes.data, scratch_W.nbytes)
        self._look_for_errors()
        room = len(self._tokens) <= _OPENING and len(self._openings) < _MOST_OPENINGS
        if room and not self.failed:
            self._openings[tuple(self._tokens)] = scratch_W.copy(), self._inner.deep_copy()
        return scratch_W

    def _known(self, *more: int) -> tuple[Mask, LLMatcher] | None:
        """What another output found out here, or after some tokens ``more``."""
        if len(self._tokens) + len(more) > _OPENING:
            return None
        return self._openings.get((*self._tokens, *more))

    def _set_ends(self, mask_W: Mask) -> None:
        """Let the output end where it may, and nowhere else."""
        whole = self.may_end
        for end in self._ends:
            _set_bit(mask_W, end, whole)

    def _look_for_errors(self) -> None:
        if self._inner.is_error():
            self.failed = reason_of(self._inner.get_error())


class _Vocabulary(ByteVocabulary):
    """The model's tokens."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes]) -> None:
        super().__init__(tokens)
        self._tokenizer = tokenizer
        self._ids = {token: index for index, token in enumerate(tokens) if token}
        self._longest = max(map(len, self._ids), default=0)
        # Behind it a text is spelt as in the middle of an output.
        self._before = tokenizer.encode(_BEFORE)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of what must come next, spelt as the model has learnt it."""
        wanted = text.encode() if isinstance(text, str) else text
        try:
            ids = self._tokenizer.encode(_BEFORE + wanted.decode())
        except UnicodeDecodeError:
            return self._spelt(wanted)
        start = len(self._before)
        if ids[:start] == self._before:
            known = all(index < len(self.tokens) for index in ids)
            if known and b"".join(self.tokens[index] for index in ids[start:]) == wanted:
                return ids[start:]
        return self._spelt(wanted)

    def _spelt(self, wanted: bytes) -> list[int]:
        """The longest token that fits, then the longest behind it, and so on."""
        ids, at = [], 0
        while at < len(wanted):
            for size in range(self._longest, 0, -1):
                index = self._ids.get(wanted[at : at + size])
                if index is not None:
                    ids.append(index)
                    at += len(wanted[at : at + size])
                    break
            else:
                break  # no token begins so
        return ids


def _set_bit(mask_W: Mask, token: int, to: bool) -> None:
    bit = np.uint32(1 << token % 32).view(np.int32)
    if to:
        mask_W[token // 32] |= bit
    else:
        mask_W[token // 32] &= ~bit
