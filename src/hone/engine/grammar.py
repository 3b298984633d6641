"""Outputs that must be something: JSON of a schema, a match of an expression, a choice, a language.

A grammar is compiled once by llguidance, which reads it byte by byte through the vocabulary. A
:class:`Matcher` follows one output, and says before each token which ones may come next.

The rules of an output under a grammar:

- a token that ends outputs may come when, and only when, the grammar may end;
- special tokens never come, and nothing but text is ever matched;
- once nothing but the end is possible the output has ended, whatever ``min_tokens`` says.

Shapes: R rows of a batch, W words of a bitmask (one bit per token, lowest first).
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from hone.core.errors import RequestError
from hone.engine.params import Grammar
from hone.engine.token_bytes import token_bytes
from hone.text.tokenizer import Tokenizer

Mask = NDArray[np.int32]

_KEPT = 64
_BEFORE = "\n"
_NAMES = {
    "json": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "lark": "grammar",
}
_LONGEST = {"json": 200_000, "regex": 20_000, "choice": 200_000, "lark": 2_000_000}
_DEEPEST = 60
# Compiling and each step are bounded by these amounts of work, not by a clock: a request is refused
# on a fast machine or on none.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=500_000,
    step_max_items=100_000,
    max_grammar_size=1_000_000,
    max_lexer_states=100_000,
    verbose_errors=False,
)
# One space at most, or a new line with its indentation: a model cannot go on with blanks for ever.
_JSON_OPTIONS: Any = {"whitespace_pattern": r" ?|\n {0,40}"}


class Grammars:
    """Compiled grammars for one model; the last 64 are remembered."""

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
        for end in end_ids:
            tokens[end] = b""
        self.vocab_size = size
        self.words = (size + 31) // 32
        self._end_ids = frozenset(end_ids)
        # llguidance's own end is an id behind the last: which tokens end is a matter of requests.
        self._tokenizer = LLTokenizer(cast(Any, _Vocabulary(tokenizer, tokens)), size + 1, size)
        self._prototypes: OrderedDict[Grammar, LLMatcher] = OrderedDict()

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
        prototype = self._prototype(grammar)
        return Matcher(prototype.deep_copy(), self._end_ids.union(ends), self.words)

    def fill(self, matchers: Sequence["Matcher | None"], mask_RW: Mask) -> None:
        """The bitmasks of many outputs at once; a row without a matcher becomes -1, all allowed."""
        for row, matcher in enumerate(matchers):
            if matcher is None:
                mask_RW[row] = -1
            else:
                matcher.fill(mask_RW[row])

    def _prototype(self, grammar: Grammar) -> LLMatcher:
        found = self._prototypes.get(grammar)
        if found is None:
            found = self._compiled(grammar)
            self._prototypes[grammar] = found
            if len(self._prototypes) > _KEPT:
                self._prototypes.popitem(last=False)
        self._prototypes.move_to_end(grammar)
        return found

    def _compiled(self, grammar: Grammar) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, _notation(grammar), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            probe = Matcher(matcher.deep_copy(), self._end_ids, self.words)
            mask_W = np.zeros(self.words, np.int32)
            probe.fill(mask_W)
            if not probe.failed and (probe.ended or mask_W.any()):
                return matcher
            reason = probe.failed or "no token of the model can begin it"
        else:
            reason = _reason(matcher.get_error())
        raise RequestError(f"The {_NAMES[grammar.kind]} cannot be used: {reason}.")


class Matcher:
    """One output under a grammar.

    Attributes:
        ended: nothing but the end is possible, or the end was accepted.
        failed: why no further token can be judged (the grammar is too complex there), else "";
            the output then ends as it is, and is not what the grammar asks for.
    """

    __slots__ = ("_ends", "_finished", "_inner", "_scratch_W", "failed")

    def __init__(self, inner: LLMatcher, ends: frozenset[int], words: int) -> None:
        self._inner, self._ends = inner, ends
        # One word more may be needed for llguidance's own end.
        self._scratch_W = np.zeros(words + 1, np.int32)
        self._finished = False
        self.failed = ""

    @property
    def may_end(self) -> bool:
        """Whether the output is whole as it stands."""
        return not self.failed and bool(self._inner.is_accepting())

    @property
    def ended(self) -> bool:  # noqa: D102 - told above
        return self._finished or bool(self.failed) or bool(self._inner.is_stopped())

    def fill(self, mask_W: Mask) -> None:
        """Set the bit of each token that may come next, and clear all others."""
        size = len(mask_W)
        if self.ended:
            mask_W[:] = 0
        else:
            scratch_W = self._scratch_W
            self._inner.unsafe_compute_mask_ptr(scratch_W.ctypes.data, scratch_W.nbytes)
            mask_W[:] = scratch_W[:size]
            self._look_for_errors()
        self._set_ends(mask_W)

    def accept(self, token: int) -> bool:
        """Take ``token``; False, and nothing has changed, when it may not come."""
        if self._finished or self.failed:
            return False
        if token in self._ends:
            self._finished = bool(self._inner.is_accepting())
            return self._finished
        taken = self._inner.try_consume_tokens([token]) == 1
        self._look_for_errors()
        return taken

    def rollback(self, count: int) -> None:
        """Take the last ``count`` accepted tokens back."""
        if count and self._finished:
            self._finished = False
            count -= 1
        if count:
            self._inner.rollback(count)

    def copy(self) -> "Matcher":
        """Another matcher that stands where this one does."""
        made = Matcher(self._inner.deep_copy(), self._ends, len(self._scratch_W) - 1)
        made._finished, made.failed = self._finished, self.failed
        return made

    def _set_ends(self, mask_W: Mask) -> None:
        """Let the output end where it may, and nowhere else."""
        whole = bool(self.failed) or bool(self._inner.is_accepting())
        for end in self._ends:
            word, bit = end // 32, np.uint32(1 << end % 32).view(np.int32)
            if whole:
                mask_W[word] |= bit
            else:
                mask_W[word] &= ~bit

    def _look_for_errors(self) -> None:
        if self._inner.is_error():
            self.failed = _reason(self._inner.get_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)
        self.bos_token_id = None
        self.special_token_ids = [len(tokens)]
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


def _notation(grammar: Grammar) -> str:
    """``grammar`` in the notation of llguidance."""
    name, longest = _NAMES[grammar.kind], _LONGEST[grammar.kind]
    if len(grammar.source) > longest:
        raise RequestError(
            f"The {name} has {len(grammar.source):,} characters; at most {longest:,} are read."
        )
    match grammar.kind:
        case "json":
            schema = _read_json(grammar)
            _check_schema(schema)
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), _JSON_OPTIONS))
        case "regex":
            return str(LLMatcher.grammar_from_regex(grammar.source))
        case "choice":
            choices = _read_json(grammar)
            if not isinstance(choices, list) or not choices or not _all_texts(choices):
                raise RequestError("The choice must be a list of one text or more, none empty.")
            return "start: " + " | ".join(json.dumps(text) for text in dict.fromkeys(choices))
        case "lark":
            return grammar.source


def _all_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _read_json(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.source)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"The {_NAMES[grammar.kind]} is not JSON: {why}.") from error


def _check_schema(schema: Any) -> None:
    """Refuse what would be fetched from elsewhere, or would take more stack than there is."""
    if not isinstance(schema, dict | bool):
        raise RequestError('The JSON schema must be an object, such as {"type": "object"}.')
    level: list[Any] = [schema]
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return
    raise RequestError(f"The JSON schema is nested too deeply: at most {_DEEPEST} levels are read.")


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            raise RequestError(
                f"The JSON schema refers to {target[:80]!r}, which is not read from elsewhere; put "
                'it under "$defs" and refer to it as "#/$defs/...".'
            )
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _reason(error: str) -> str:
    """The first line of an error of llguidance, as the end of a sentence."""
    line = next((line for line in error.splitlines() if line.strip()), "it is wrong")
    return line.strip().rstrip(".")[:300]
