"""Messages as people and tools write them, to the one form that chat templates read.

``{"role": "system|user|assistant|tool|…", "content": text}``; an assistant's call of a function is
``"tool_calls": [{"type": "function", "function": {"name": text, "arguments": object}}]``, its
arguments as an object (the form of transformers), not as JSON in a text (the form of OpenAI).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hone.core.errors import RequestError

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}


def canonical_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """``messages`` in the form above; what is written so already comes back equal.

    Parts of a content are joined, null fields are left out, other fields are kept.

    Raises:
        RequestError: names the message by its number, from 1, and says what is wrong with it.
    """
    return [_message(number, message) for number, message in enumerate(messages, 1)]


def canonical_role(name: str) -> str:
    """``human``, ``gpt``, ``observation`` and the like under the name that templates know."""
    return _ROLES.get(name, name)


def canonical_call(call: Any, where: str) -> dict[str, Any]:
    """One call of a function, from ``{"name", "arguments"}`` or ``{"function": {...}}``.

    Raises:
        RequestError: it names no function, or its arguments are no object.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(
            f'{where}: a tool call is {call!r:.100}; write {{"name": text, "arguments": object}}.'
        )
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError as error:
            raise RequestError(
                f"{where}: the arguments of {function['name']!r} are not valid JSON ({error.msg}, "
                f"column {error.colno})."
            ) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(
            f"{where}: the arguments of {function['name']!r} must be an object, found "
            f"{arguments!r:.60}."
        )
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if call.get("id") is not None else {})


def canonical_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Function schemas as a list, from a list or its JSON; None where there are none.

    A bare schema (``{"name", "parameters"}``) is put into ``{"type": "function", "function": …}``.

    Raises:
        RequestError: it is something else.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise RequestError(
                f'"tools" is not valid JSON ({error.msg}, column {error.colno}).'
            ) from error
    if tools is None or tools == []:
        return None
    listed = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
        raise RequestError(f'"tools" must be a list of function schemas, found {tools!r:.80}.')
    return [
        {"type": "function", "function": dict(tool)}
        if "function" not in tool and "name" in tool
        else dict(tool)
        for tool in listed
    ]


def _message(number: int, message: Any) -> dict[str, Any]:
    where = f"Message {number}"
    if not isinstance(message, Mapping):
        raise RequestError(
            f'{where} is {message!r:.80}; write {{"role": "user", "content": "..."}}.'
        )
    made = {key: value for key, value in message.items() if value is not None}
    role = made.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f'{where} has no "role"; its keys are {", ".join(map(str, message))}.')
    made["role"] = canonical_role(role)
    if "function_call" in made:  # OpenAI's first form
        made["tool_calls"] = [made.pop("function_call")]
    calls = made.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, list):
            raise RequestError(f'{where}: "tool_calls" must be a list, found {calls!r:.60}.')
        made["tool_calls"] = [canonical_call(call, where) for call in calls]
    if "content" in made:
        made["content"] = _text(made["content"], where)
    elif calls:
        made["content"] = ""  # many templates write it whether there are calls or not
    else:
        raise RequestError(f'{where} ({role}) has no "content".')
    return made


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f'{where}: "content" must be a text, found {content!r:.60}.')
    texts = []
    for part in content:
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping) and part.get("type", "text") == "text":
            text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise RequestError(
                f"{where}: a part of its content is of the type {kind!r}; only text can be used."
            )
        texts.append(text)
    return "".join(texts)
