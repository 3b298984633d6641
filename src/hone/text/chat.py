"""Chat templates: a conversation to the text that a model was trained on.

Renders as transformers does (``apply_chat_template``), in Jinja's immutable sandbox: a template
comes with a checkpoint and is not trusted.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hone.core.errors import CheckpointError, RequestError
from hone.text.special_tokens import named

# Spellings under which a message's reasoning is passed; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# What one rendering may use: steps of all its ranges together, length of one product.
_MOST_STEPS = 10_000_000
_MOST_PRODUCED = 100_000_000
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


# What encloses an assistant's part while it is looked for: no characters, by Unicode's definition.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")


class ChatTemplate:
    """A compiled template with the special tokens that it may write.

    Attributes:
        marks_answers: it says by ``{% generation %}`` blocks what the assistant wrote.
    """

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any] | None = None) -> None:
        """Compile ``source``.

        Args:
            tokenizer_config: ``tokenizer_config.json``, for ``bos_token`` and the like.

        Raises:
            CheckpointError: the template is not valid Jinja; names the line.
        """
        try:
            self._template = _compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"The chat template cannot be read, line {error.lineno}: {error.message}."
            ) from error
        except RecursionError as error:
            raise CheckpointError("The chat template is nested too deeply to be read.") from error
        self._source = source
        self._tokens = named(tokenizer_config or {})
        self.marks_answers = bool(_GENERATION.search(source))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text, special tokens included: encode it without adding any.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            tools: JSON schemas of functions.
            add_generation_prompt: end with what precedes an answer of the assistant.
            variables: whatever else the template reads.

        Raises:
            RequestError: a malformed message, or the template refuses the conversation.
        """
        return self._render(
            self._template, messages, tools, add_generation_prompt, documents, variables
        )

    def render_marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """A whole conversation, and where in its text the ``{% generation %}`` blocks stand.

        Returns:
            the text of :meth:`render` without a generation prompt, and ``(start, end)`` in
            characters for each block that wrote anything, in order.

        Raises:
            RequestError: as :meth:`render`; also where the blocks' texts cannot be told, because
                the template works on what they wrote.
        """
        text = self.render(messages, tools, add_generation_prompt=False, **variables)
        marked = self._render(
            _compile(self._source, marked=True), messages, tools, False, None, variables
        )
        pieces = _MARK.split(marked)
        spans, open_since, length = [], None, 0
        for piece, mark in zip(pieces, [*_MARK.findall(marked), ""], strict=True):
            length += len(piece)
            if mark == _OPEN and open_since is None:
                open_since = length
            elif mark == _CLOSE and open_since is not None:
                spans.append((open_since, length))
                open_since = None
            elif mark:
                break
        else:
            if "".join(pieces) == text and open_since is None:
                return text, [span for span in spans if span[0] < span[1]]
        raise RequestError(
            "The chat template changes what its generation blocks wrote, so the assistant's part "
            "cannot be told."
        )

    def _render(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        documents: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        if not messages:
            raise RequestError("The conversation is empty; give at least one message.")
        given = self._tokens | dict(variables)
        try:
            return template.render(
                {key: _plain(value) for key, value in given.items()}
                | {
                    "messages": [_message(number, item) for number, item in enumerate(messages, 1)],
                    "tools": None if tools is None else _plain(list(tools)),
                    "documents": None if documents is None else _plain(list(documents)),
                    "add_generation_prompt": add_generation_prompt,
                    "range": _Range(),
                }
            )
        except jinja2.TemplateError as error:
            raise RequestError(f"The chat template refused the messages: {error}.") from error
        except (MemoryError, RecursionError) as error:
            raise RequestError(
                "The chat template ran out of memory or calls itself without end."
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            # Python's own errors inside a template, e.g. adding a text to None.
            raise RequestError(
                f"The chat template cannot use these messages ({error}); is a field missing?"
            ) from error


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's part; its text is kept."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(self._enclosed(body)).set_lineno(line)

    def _enclosed(self, body: list[nodes.Node]) -> list[nodes.Node]:
        return body


class _MarkedGeneration(_Generation):
    """Writes marks around the assistant's part."""

    def _enclosed(self, body: list[nodes.Node]) -> list[nodes.Node]:
        return [_text_node(_OPEN), *body, _text_node(_CLOSE)]


def _text_node(text: str) -> nodes.Node:
    return nodes.Output([nodes.TemplateData(text)])


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products that fill the memory, or take for ever: ``"x" * 10**12`` needs no loop."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > _MOST_PRODUCED:
            raise jinja2.TemplateError(f"a result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> int:
    """About how long ``left operator right`` will be: items of a sequence, bits of a number."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length()
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            return len(sequence) * times
    return 0


class _Range:
    """``range`` of one rendering, whose loops within loops share one allowance."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def __call__(self, *args: int) -> range:
        steps = range(*args)
        self._left -= len(steps)
        if self._left < 0:
            raise OverflowError(f"its ranges have more than {_MOST_STEPS} steps")
        return steps


class _Dict:
    # The type itself would open a way to its methods and bases.
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Holds no name of Python's own: none can be set, so none can be read back."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    given = dict(*args, **kwargs)
    for name in given:
        _check_name(name)
    return _Namespace(given)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


@lru_cache(maxsize=16)
def _compile(source: str, marked: bool = False) -> jinja2.Template:
    generation = _MarkedGeneration if marked else _Generation
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _namespace
    return environment.from_string(source)


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


def _message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(
            f'Message {number} is {message!r}; write {{"role": "user", "content": "..."}}.'
        )
    # A client's "content": null (beside tool calls) is a field that is not there.
    plain = {key: value for key, value in _plain(message).items() if value is not None}
    if "content" not in plain and "tool_calls" not in plain:
        raise RequestError(f'Message {number} ({plain["role"]}) has no "content".')
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain(value: Any) -> Any:
    """``value`` rebuilt of JSON types: methods of other objects are not the template's to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    # Asking whether it is a Mapping takes longer than all the rest.
    if type(value) is dict or isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    for kind in (str, int, float):
        if isinstance(value, kind):
            rebuild: Callable[[Any], Any] = kind.__str__ if kind is str else kind
            return rebuild(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    raise RequestError(f"A chat message holds a {type(value).__name__}; only JSON values may be.")
