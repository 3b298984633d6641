"""SQLite functions whose own versions can run for minutes on one value, rewritten to stay linear.

A query is interrupted between instructions, and a function call is one instruction. ``trim(x, y)``
compares every character of ``x`` with every one of ``y``, and ``instr`` and ``replace`` search with
as many comparisons: on a megabyte, that is up to eight minutes that no clock can stop.
"""

import sqlite3
from collections.abc import Callable

Value = int | float | str | bytes | None


def register(connection: sqlite3.Connection, longest: int) -> None:
    """Put the linear versions in place; a result over ``longest`` characters is an error."""

    def replace(text: Value, old: Value, new: Value) -> Value:
        if text is None or old is None:
            return None
        if not (old := _as_text(old)):
            # SQLite returns early here, before it looks at what would be put in.
            return _as_text(text) if isinstance(text, bytes) else text
        if new is None:
            return None
        text, new = _as_text(text), _as_text(new)
        if len(text) + text.count(old) * (len(new) - len(old)) > longest:
            raise ValueError("string or blob too big")
        return text.replace(old, new)

    functions: dict[str, tuple[int, Callable[..., Value]]] = {
        "instr": (2, _instr),
        "replace": (3, replace),
        "trim": (2, lambda text, signs: _trim(text, signs, True, True)),
        "ltrim": (2, lambda text, signs: _trim(text, signs, True, False)),
        "rtrim": (2, lambda text, signs: _trim(text, signs, False, True)),
    }
    for name, (arguments, function) in functions.items():
        connection.create_function(name, arguments, function, deterministic=True)


def _instr(text: Value, part: Value) -> Value:
    if text is None or part is None:
        return None
    if isinstance(text, bytes) and isinstance(part, bytes):
        return text.find(part) + 1
    return _as_text(text).find(_as_text(part)) + 1


def _trim(text: Value, signs: Value, left: bool, right: bool) -> Value:
    if text is None or signs is None:
        return None
    text, unwanted = _as_text(text), set(_as_text(signs))
    start, end = 0, len(text)
    while left and start < end and text[start] in unwanted:
        start += 1
    while right and end > start and text[end - 1] in unwanted:
        end -= 1
    return text[start:end]


def _as_text(value: int | float | str | bytes) -> str:
    """``value`` the way SQLite casts it to text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int):
        return str(value)
    if value in (float("inf"), float("-inf")):
        return "Inf" if value > 0 else "-Inf"
    digits, mark, exponent = f"{value:.15g}".partition("e")
    return digits + ("" if "." in digits else ".0") + mark + exponent
