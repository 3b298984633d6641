"""Calls of functions, read from an output while it is written.

A reader takes text in pieces and gives back what it is sure of: text for people, and parts of
calls. Joined, the parts of a call's arguments are the JSON text that the model wrote.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_BLANK = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "id", *_ARGUMENTS)


@dataclass(slots=True)
class CallPart:
    """A part of the call number ``index``; the first one of a call has its name.

    Attributes:
        arguments: what is to be appended to the arguments so far.
    """

    index: int
    name: str | None = None
    arguments: str = ""


Found = list[str | CallPart]


class Reader(Protocol):
    """What reads the calls of one output."""

    calls: int

    def push(self, text: str) -> Found:
        """Take more of the output; returns what is sure by now."""

    def finish(self) -> Found:
        """The output has ended; returns the rest."""


class _Value:
    """Where a JSON value that begins an object, a list or a text ends."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def take(self, char: str) -> bool:
        """Follow one character; True when it is the value's last."""
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
                return self._depth == 0
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False


class _Call:
    """One ``{"name": …, "arguments": {…}}``, whatever the order of its keys.

    Attributes:
        raw: all that was read.
        name: known once the model has written it.
        state: "open", "done", or "broken" when it is no call after all.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.state = "open"
        self._step = self._begin
        self._value = _Value()
        self._key = ""
        self._token = ""
        self._arguments = ""  # not given out yet
        self._given = False

    def push(self, text: str) -> str:
        """Take text; returns what is behind the end of the call."""
        for at, char in enumerate(text):
            self.raw += char
            self._step(char)
            if self.state != "open":
                return text[at + 1 :]
        return ""

    def take_arguments(self) -> str:
        """The part of the arguments that was not given out; "" before the name is known."""
        if self.name is None:
            return ""
        part, self._arguments = self._arguments, ""
        self._given = self._given or bool(part)
        return part

    def _begin(self, char: str) -> None:
        self._step = self._before_key

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._token, self._value = "", _Value()
            self._step = self._in_key
            self._in_key(char)
        elif char == "}":
            self._close()
        elif char not in _BLANK + ",":
            self.state = "broken"

    def _in_key(self, char: str) -> None:
        self._token += char
        if self._value.take(char):
            self._key = _text(self._token) or ""
            self.state = "open" if self._key in _KEYS else "broken"
            self._step = self._before_value

    def _before_value(self, char: str) -> None:
        if char in _BLANK + ":":
            return
        self._token, self._value = "", _Value()
        self._step = self._in_value if char in '{["' else self._in_word
        self._step(char)

    def _in_value(self, char: str) -> None:
        self._token += char
        # A text among the arguments' place holds them as OpenAI's clients write them.
        passes = self._key in _ARGUMENTS and self._token[0] != '"'
        if passes:
            self._arguments += char
        if self._value.take(char):
            if self._key == "name":
                self.name = _text(self._token)
                self.state = "open" if self.name else "broken"
            elif self._key in _ARGUMENTS and not passes:
                self._arguments += _text(self._token) or ""
            self._step = self._before_key

    def _in_word(self, char: str) -> None:
        """A number, or null: no name and no arguments, but harmless elsewhere."""
        if char in ",}":
            if self._key == "name":
                self.state = "broken"
                return
            self._step = self._before_key
            self._before_key(char)

    def _close(self) -> None:
        self.state = "done" if self.name is not None else "broken"
        if self.state == "done" and not self._given and not self._arguments:
            self._arguments = "{}"


def _text(token: str) -> str | None:
    """The text that a JSON text stands for."""
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


class JsonCalls:
    """Calls as JSON objects behind ``opener``, or at the very beginning where ``bare``."""

    def __init__(self, opener: str, closer: str = "", bare: bool = False, opened: bool = False):
        self._opener, self._closer = opener, closer
        self.calls = 0
        self._held = ""
        self._call: _Call | None = None
        self._named = False
        self._opening = ""  # what was read before a call that may turn out to be none
        self._state: Callable[[], Found | None] = self._between if opened else self._free
        if bare and not opened:
            self._state = self._start

    def push(self, text: str) -> Found:  # noqa: D102 - as Reader says
        self._held += text
        found: Found = []
        while (more := self._state()) is not None:
            found += more
        return found

    def finish(self) -> Found:  # noqa: D102 - as Reader says
        if self._call is not None:
            return [] if self._named else [self._opening + self._call.raw]
        rest = self._opening + self._held
        if self.calls:
            rest = "" if self._state == self._between else rest.rstrip()
        return [rest] if rest else []

    # Each state takes from what is held; None when it needs more.

    def _start(self) -> Found | None:
        if not self._held.strip():
            return None
        bare = self._held.lstrip().startswith("{")
        self._state = self._between if bare else self._free
        return []

    def _free(self) -> Found | None:
        place = self._held.find(self._opener)
        if place >= 0:
            text = self._held[:place].rstrip()
            self._opening = self._opener
            self._held = self._held[place + len(self._opener) :]
            self._state = self._between
            return [text] if text else []
        # Blanks before a call belong to it, and only the next text shows that there was none.
        sure = len(self._held) - _overlap(self._held, self._opener)
        sure = len(self._held[:sure].rstrip())
        text, self._held = self._held[:sure], self._held[sure:]
        return [text] if text else None

    def _between(self) -> Found | None:
        rest = self._held.lstrip(_BLANK + ",;[]" if self._closer == "" else _BLANK)
        if not rest or (self._closer and self._closer != rest and self._closer.startswith(rest)):
            return None
        if rest.startswith("{"):
            self._opening += self._held[: len(self._held) - len(rest)]
            self._held = rest
            self._call, self._named = _Call(), False
            self._state = self._in_call
        elif self._opener and rest.startswith(self._opener):
            self._held = rest[len(self._opener) :]
        elif self._closer and rest.startswith(self._closer):
            self._opening, self._held = "", rest[len(self._closer) :]
            self._state = self._free
        else:
            self._held = self._held if self._opening else rest
            return self._give_up(self._opening)
        return []

    def _give_up(self, text: str) -> Found:
        """What looked like the beginning of a call is text."""
        self._opening, self._call = "", None
        self._state = self._free
        return [text] if text else []

    def _in_call(self) -> Found | None:
        if not self._held:
            return None
        assert self._call is not None
        text, self._held = self._held, ""
        rest = self._call.push(text)
        if self._call.state == "broken" and not self._named:
            self._held = rest
            return self._give_up(self._opening + self._call.raw)
        part = CallPart(self.calls, arguments=self._call.take_arguments())
        if not self._named and self._call.name is not None:
            self._named, part.name = True, self._call.name
        if self._call.state != "open":
            self.calls, self._call = self.calls + 1, None
            self._opening, self._held = "", rest
            self._state = self._between
        return [part] if part.name is not None or part.arguments else []


class NamedCalls:
    """Calls as ``[TOOL_CALLS]name[ARGS]{…}``, one behind the other (Mistral's newer form)."""

    opener, divider = "[TOOL_CALLS]", "[ARGS]"
    _identifier = "[CALL_ID]"

    def __init__(self, opened: bool = False) -> None:
        self.calls = 0
        self._held = ""
        self._value: _Value | None = None
        self._in_name = opened

    def push(self, text: str) -> Found:  # noqa: D102 - as Reader says
        self._held += text
        found: Found = []
        while (more := self._take()) is not None:
            found += more
        return found

    def finish(self) -> Found:  # noqa: D102 - as Reader says
        if self._value is not None or (self.calls and not self._held.strip()):
            return []
        rest = self.opener * self._in_name + self._held
        return [rest] if rest else []

    def _take(self) -> Found | None:
        if self._value is not None:
            return self._arguments(self._value)
        sign = self.divider if self._in_name else self.opener
        place = self._held.find(sign)
        if place < 0 and not self._in_name:
            sure = len(self._held) - _overlap(self._held, sign)
            sure = len(self._held[:sure].rstrip())
            text, self._held = self._held[:sure], self._held[sure:]
            return [text] if text else None
        if place < 0:
            return None
        text, self._held = self._held[:place], self._held[place + len(sign) :]
        self._in_name = not self._in_name
        if self._in_name:
            return [text.rstrip()] if text.strip() else []
        self._value = _Value()
        return [CallPart(self.calls, text.partition(self._identifier)[0].strip())]

    def _arguments(self, value: _Value) -> Found | None:
        for at, char in enumerate(self._held):
            if value.take(char):
                part = CallPart(self.calls, arguments=self._held[: at + 1])
                self.calls, self._value = self.calls + 1, None
                self._held = self._held[at + 1 :]
                return [part]
        part, self._held = CallPart(self.calls, arguments=self._held), ""
        return [part] if part.arguments else None


def _overlap(text: str, sign: str) -> int:
    """Length of the longest end of ``text`` with which ``sign`` begins."""
    for length in range(min(len(text), len(sign) - 1), 0, -1):
        if sign.startswith(text[-length:]):
            return length
    return 0
