"""Grammars of requests in llguidance's notation, checked before anything follows them.

An expression can take longer to compile than the universe has time for, and a compiler that runs
cannot be stopped. So a grammar is compiled first in a process of its own, for a vocabulary of bare
bytes, and that process is killed when it takes too long. Nothing here needs torch.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from hone.core.errors import RequestError
from hone.engine.params import Grammar

NAMES = {
    "json": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "lark": "grammar",
}
# Each step is bounded by amounts of work, so that it is refused on a fast machine or on none.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=500_000,
    step_max_items=100_000,
    max_items_in_row=20_000,
    max_grammar_size=1_000_000,
    max_lexer_states=100_000,
    verbose_errors=False,
)
_SECONDS = 5.0
_STARTED_WITHIN = 60.0
_REMEMBERED = 256
_LONGEST = {"json": 200_000, "regex": 20_000, "choice": 200_000, "lark": 2_000_000}
_DEEPEST = 60
# One space at most: a small model would spend its tokens on new lines and indentation.
_JSON_OPTIONS: Any = {"whitespace_pattern": " ?"}
_REASONS = {
    "NoExtension": "nothing can match it",
    "NoExtensionBias": "nothing can match it",
    "": "it is wrong",
}


def check_grammar(grammar: Grammar) -> None:
    """Find out whether ``grammar`` can be followed at all; a wrong one is known again.

    Raises:
        RequestError: it is wrong, too large or too complex, or nothing can match it.
    """
    refusal = _refusal(grammar)
    if refusal:
        raise RequestError(refusal)


@lru_cache(_REMEMBERED)
def _refusal(grammar: Grammar) -> str:
    try:
        text = notation(grammar)
    except RequestError as error:
        return str(error)
    reason = _HELPER.ask(text)
    return f"The {NAMES[grammar.kind]} cannot be used: {reason}." if reason else ""


def notation(grammar: Grammar) -> str:
    """``grammar`` in the notation of llguidance.

    Raises:
        RequestError: it is larger than is read, or not what its kind must be.
    """
    name, longest = NAMES[grammar.kind], _LONGEST[grammar.kind]
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
            return str(LLMatcher.grammar_from_regex("|".join(map(_literally, choices))))
        case "lark":
            return grammar.source


def compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher | str:
    """A matcher of the grammar ``text`` at its beginning, or why there is none."""
    try:
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()
    except (ValueError, RuntimeError) as error:
        return reason_of(str(error))
    return reason_of(matcher.get_error()) if matcher.is_error() else matcher


def reason_of(error: str) -> str:
    """The line of an error of llguidance that tells most, as the end of a sentence."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "")
    told = told.removeprefix("error:").strip().rstrip(".:")
    return _REASONS.get(told, told)[:300]


class ByteVocabulary:
    """A vocabulary as llguidance asks for it: here of the 256 bytes and an end."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes] | None = None) -> None:
        given = [bytes([byte]) for byte in range(256)] if tokens is None else tokens
        self.tokens = [*given, b""]
        self.eos_token_id = len(given)
        self.special_token_ids = [len(given)]

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of ``text``."""
        return list(text.encode() if isinstance(text, str) else text)

    def tokenizer(self) -> LLTokenizer:
        """What llguidance makes of it."""
        return LLTokenizer(cast(Any, self), len(self.tokens), self.eos_token_id)


def _all_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _literally(text: str) -> str:
    """An expression that matches ``text`` and nothing else."""
    return re.sub(r"[^\w]|_", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _read_json(grammar: Grammar) -> Any:
    try:
        value = json.loads(grammar.source)
        grammar.source.encode()
        json.dumps(value, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"The {NAMES[grammar.kind]} is not JSON: {why}.") from error
    return value


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


class _Helper:
    """The process that compiles; started when first needed, and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: SimpleQueue[str] = SimpleQueue()

    def ask(self, text: str) -> str:
        """Why the grammar ``text`` cannot be used; empty when it can."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(text) + "\n")
                process.stdin.flush()
                answer = self._answers.get(timeout=_SECONDS)
            except (Empty, OSError):
                answer = ""
            if not answer:  # too slow, or the compiler took its process down with it
                process.kill()
                process.wait()
                self._process = None
                return f"it is too complex to be compiled in {_SECONDS:g} seconds"
        return str(json.loads(answer))

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hone.engine.notation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._answers = SimpleQueue()
            reader = threading.Thread(
                target=_pass_on, args=(self._process.stdout, self._answers.put), daemon=True
            )
            reader.start()
            self._answers.get(timeout=_STARTED_WITHIN)  # it says that it is ready
        return self._process


def _pass_on(lines: Any, put: Callable[[str], None]) -> None:
    for line in lines:
        put(line)
    put("")


def _serve() -> None:
    """Answer the grammars of standard input, one to a line, until it is closed."""
    tokenizer = ByteVocabulary().tokenizer()
    print(flush=True)
    for line in sys.stdin:
        # Who asked kills this process long before, unless it was killed itself.
        signal.alarm(int(2 * _SECONDS))
        found = compiled(tokenizer, json.loads(line))
        signal.alarm(0)
        print(json.dumps(found if isinstance(found, str) else ""), flush=True)


_HELPER = _Helper()

if __name__ == "__main__":
    _serve()
