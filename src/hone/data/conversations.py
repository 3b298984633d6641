"""Rows of every format that tunes a language model, to three kinds of example.

A conversation is written through the model's chat template; a completion is its prompt and what
follows, just so; a document is text.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hone.core.errors import DataError, RequestError
from hone.data.formats import Format, check_tunes, detect_format
from hone.data.rows import Row, Rows
from hone.text.messages import canonical_call, canonical_messages, canonical_role, canonical_tools

Message = dict[str, Any]
# An assistant's message with one of these at 0 is read and not trained.
_WEIGHTS = ("weight", "loss_weight")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the form of ``hone.text.messages``.

    Attributes:
        line: where it stands in its file: a line, or a row of a table.
        untrained: indices of answers that are only read.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    line: int
    untrained: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Completion:
    """A text and what follows it."""

    prompt: str
    completion: str
    line: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text, all of which is trained."""

    text: str
    line: int


Example = Conversation | Completion | Document


class Examples:
    """The examples of a file; iterating reads it, each time from the beginning.

    Attributes:
        rows: where they come from.
        format: told from the first row's columns.
    """

    def __init__(self, source: str | Path, columns: Mapping[str, str] | None = None) -> None:
        """Look at the first row of ``source``.

        Args:
            source: a file or ``hf://…``; see ``hone.data.rows``.
            columns: a format's column names to those that the file has, e.g.
                ``{"prompt": "Q", "completion": "A"}``; then the other columns are not read.

        Raises:
            DataError: it cannot be read, no format has its columns, or the format is for
                something else than tuning a language model.
        """
        self.rows = Rows(str(source), columns)
        _, first = next(iter(self.rows))
        self.format = detect_format(first, str(source))
        check_tunes(self.format, str(source))

    @property
    def use_template(self) -> bool:
        """Whether they are conversations, which a chat template writes."""
        return isinstance(next(iter(self)), Conversation)

    @property
    def use_tools(self) -> bool:
        """Whether one of the first thousand offers functions or calls one."""
        return any(
            isinstance(example, Conversation)
            and (example.tools or any("tool_calls" in item for item in example.messages))
            for example in islice(self, 1000)
        )

    def __length_hint__(self) -> int:
        """About how many there are; 0 where only reading the file would tell."""
        return self.rows.__length_hint__()

    def __iter__(self) -> Iterator[Example]:
        """Each row as an example.

        Raises:
            DataError: names the file, the line or row, and what is wrong.
        """
        read = _READERS[self.format]
        for number, values in self.rows:
            try:
                yield read((number, values))
            except RequestError as error:
                raise DataError(f"{self.rows.where(number)}: {error}") from error


def _conversation(row: Row) -> Conversation:
    number, values = row
    messages = _listed(values, "messages")
    if not any(isinstance(item, Mapping) and item.get("role") == "system" for item in messages):
        messages = _system(values) + messages
    return _made(messages, values.get("tools"), number)


def _sharegpt(row: Row) -> Conversation:
    number, values = row
    messages = _system(values)
    for at, turn in enumerate(_listed(values, "conversations"), 1):
        if not isinstance(turn, Mapping):
            raise RequestError(f'Turn {at} of "conversations" is {turn!r:.60}, not an object.')
        if "from" not in turn and "role" in turn:
            messages.append(dict(turn))
            continue
        for key in ("from", "value"):
            if not isinstance(turn.get(key), str):
                raise RequestError(
                    f'Turn {at} of "conversations": "{key}" must be a text, found '
                    f"{turn.get(key)!r:.60}."
                )
        weights = {key: turn[key] for key in _WEIGHTS if key in turn}
        if turn["from"] == "function_call":
            calls = _json(turn["value"], f"Turn {at} (function_call)")
            calls = calls if isinstance(calls, list) else [calls]
            made = [canonical_call(call, f"Turn {at}") for call in calls]
            messages.append({"role": "assistant", "content": "", "tool_calls": made} | weights)
        else:
            role = canonical_role(turn["from"])
            messages.append({"role": role, "content": turn["value"]} | weights)
    return _made(messages, values.get("tools"), number)


def _alpaca(row: Row) -> Conversation:
    number, values = row
    messages = _system(values)
    for pair in _listed(values, "history") if values.get("history") else []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RequestError(f'"history" must hold [question, answer] pairs, found {pair!r:.60}.')
        question, answer = pair
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    question = _text(values, "instruction")
    if values.get("input"):
        question = f"{question}\n{_text(values, 'input')}" if question else _text(values, "input")
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text(values, "output")})
    return _made(messages, values.get("tools"), number)


def _prompt_completion(row: Row) -> Conversation | Completion:
    number, values = row
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt, completion, number)
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise RequestError(
            '"prompt" and "completion" must both be texts or both be lists of messages, found '
            f"{prompt!r:.40} and {completion!r:.40}."
        )
    made = _made([*prompt, *completion], values.get("tools"), number)
    return Conversation(
        made.messages, made.tools, number, made.untrained | frozenset(range(len(prompt)))
    )


def _document(row: Row) -> Document:
    number, values = row
    return Document(_text(values, "text"), number)


_READERS: dict[Format, Callable[[Row], Example]] = {
    Format.CONVERSATION: _conversation,
    Format.SHAREGPT: _sharegpt,
    Format.ALPACA: _alpaca,
    Format.PROMPT_COMPLETION: _prompt_completion,
    Format.TEXT: _document,
}


def _made(messages: list[Any], tools: Any, number: int) -> Conversation:
    found = canonical_messages(messages)
    untrained = []
    for index, message in enumerate(found):
        for name in _WEIGHTS:
            weight = message.pop(name, 1)
            if weight not in (0, 1):
                raise RequestError(
                    f'Message {index + 1}: "{name}" is {weight!r}; a message is trained (1) or '
                    "only read (0)."
                )
            if weight == 0:
                untrained.append(index)
    return Conversation(found, canonical_tools(tools), number, frozenset(untrained))


def _system(values: Mapping[str, Any]) -> list[Message]:
    """The message of a column of its own, where it says anything."""
    if not values.get("system"):
        return []
    return [{"role": "system", "content": _text(values, "system")}]


def _listed(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key)
    if isinstance(found, str):  # a table of texts holds lists as JSON
        found = _json(found, f'"{key}"')
    if not isinstance(found, list):
        raise RequestError(f'"{key}" must be a list, found {found!r:.60}.')
    return found


def _text(values: Mapping[str, Any], key: str) -> str:
    found = values.get(key)
    if not isinstance(found, str):
        raise RequestError(f'"{key}" must be a text, found {found!r:.60}.')
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not valid JSON ({error.msg}, column {error.colno}).") from (
            error
        )
