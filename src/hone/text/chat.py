"""Chat templates: a conversation to the text that a model was trained on.

Renders as transformers does (``apply_chat_template``), in Jinja's immutable sandbox: a template
comes with a checkpoint and is not trusted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hone.core.errors import CheckpointError, RequestError

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Spellings under which a message's reasoning is passed; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's part; its text is kept."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class ChatTemplate:
    """A compiled template with the special tokens that it may write."""

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any] | None = None) -> None:
        """Compile ``source``.

        Args:
            tokenizer_config: ``tokenizer_config.json``, for ``bos_token`` and the like.

        Raises:
            CheckpointError: the template is not valid Jinja; names the line.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"The chat template cannot be read, line {error.lineno}: {error.message}."
            ) from error
        self._tokens = _special_tokens(tokenizer_config or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text, special tokens included.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            tools: JSON schemas of functions.
            add_generation_prompt: end with what precedes an answer of the assistant.
            variables: whatever else the template reads.

        Raises:
            RequestError: a malformed message, or the template refuses the conversation.
        """
        given = self._tokens | variables
        try:
            return self._template.render(
                **{key: _plain(value) for key, value in given.items()},
                messages=[_message(number, item) for number, item in enumerate(messages, 1)],
                tools=None if tools is None else _plain(list(tools)),
                documents=None if documents is None else _plain(list(documents)),
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise RequestError(f"The chat template refused the messages: {error}.") from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            # Python's own errors inside a template, e.g. adding a text to None.
            raise RequestError(
                f"The chat template cannot use these messages ({error}); is a field missing?"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    def content(token: Any) -> Any:
        return token.get("content") if isinstance(token, Mapping) else token

    found = {name: content(config.get(name)) for name in _SPECIAL_TOKENS}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        found |= {name: content(token) for name, token in extra.items()}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(
            f'Message {number} is {message!r}; write {{"role": "user", "content": "..."}}.'
        )
    if "content" not in message and "tool_calls" not in message:
        raise RequestError(f'Message {number} ({message["role"]}) has no "content".')
    plain = _plain(message)
    reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any) -> Any:
    """``value`` rebuilt of JSON types: methods of other objects are not the template's to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            rebuild: Callable[[Any], Any] = kind.__str__ if kind is str else kind
            return rebuild(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise RequestError(f"A chat message holds a {type(value).__name__}; only JSON values may be.")
