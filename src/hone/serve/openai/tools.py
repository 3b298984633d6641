"""Functions on offer: how a model writes calls of them, and how it is made to write them.

Every family has a form of its own. Which one a model was taught is told by its chat template, by
letting it write a conversation that has a call in it.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hone.core.errors import HoneError, RequestError
from hone.engine.params import Grammar
from hone.serve.openai.calls import JsonCalls, NamedCalls, Reader
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]

# Words of ours that a template writes when it writes a call.
_NAME, _KEY = "probe_call", "probe_key"
_PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "probe",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    }
]
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": "probe0000",
                "function": {"name": _NAME, "arguments": {_KEY: "probe_value"}},
            }
        ],
    },
    {"role": "tool", "name": _NAME, "tool_call_id": "probe0000", "content": "probe_result"},
]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a family of models writes calls.

    Attributes:
        name: of the family.
        written: matches what a template writes for the call of ``probe_call``.
        signs: what marks calls; where one is a special token the decoder drops it, so that whoever
            reads an output puts it back. The first one opens them.
        first, between, last: what stands before the calls, between two of them and behind them.
        before: what stands before a call's arguments, ``NAME`` being its JSON name; "" where calls
            of this form cannot be forced.
        after: what stands behind a call's arguments.
        read: makes a reader; its argument says that the opener was in the prompt.
        short_ids: ids have 9 letters and digits (Mistral's templates refuse others).
    """

    name: str
    written: re.Pattern[str]
    signs: tuple[str, ...]
    first: str
    before: str
    after: str
    between: str
    last: str
    read: Callable[[bool], Reader]
    short_ids: bool = False

    def new_id(self) -> str:
        """An id for a call."""
        text = uuid.uuid4().hex
        return text[:9] if self.short_ids else f"call_{text[:24]}"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text.replace("NAME", _NAME).replace("ARGUMENTS", rf'\{{\s*"{_KEY}"'))


HERMES = CallFormat(
    "hermes",
    _pattern(r'<tool_call>\s*\{\s*"name":\s*"NAME",\s*"arguments":\s*ARGUMENTS'),
    signs=("<tool_call>", "</tool_call>"),
    first="<tool_call>\n",
    before='{"name": NAME, "arguments": ',
    after="}",
    between="\n</tool_call>\n<tool_call>\n",
    last="\n</tool_call>",
    read=lambda opened: JsonCalls("<tool_call>", "</tool_call>", opened=opened),
)
MISTRAL = CallFormat(
    "mistral",
    _pattern(r'\[TOOL_CALLS\]\s*\[\s*\{\s*"name":\s*"NAME",\s*"arguments":\s*ARGUMENTS'),
    signs=("[TOOL_CALLS]",),
    first="[TOOL_CALLS][",
    before='{"name": NAME, "arguments": ',
    after="}",
    between=", ",
    last="]",
    read=lambda opened: JsonCalls("[TOOL_CALLS]", opened=opened),
    short_ids=True,
)
MISTRAL_NAMED = CallFormat(
    "mistral with [ARGS]",
    _pattern(r"\[TOOL_CALLS\]\s*NAME(\[CALL_ID\]\w+)?\[ARGS\]\s*ARGUMENTS"),
    signs=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    first="",
    before="",
    after="",
    between="",
    last="",
    read=NamedCalls,
    short_ids=True,
)
LLAMA = CallFormat(
    "llama",
    _pattern(r'\{\s*"name":\s*"NAME",\s*"parameters":\s*ARGUMENTS'),
    signs=("<|python_tag|>",),
    first="",
    before='{"name": NAME, "parameters": ',
    after="}",
    between="; ",
    last="",
    read=lambda opened: JsonCalls("<|python_tag|>", bare=True, opened=opened),
)
FORMATS = (HERMES, MISTRAL, MISTRAL_NAMED, LLAMA)


def find_format(conversations: Conversations) -> CallFormat | None:
    """How the model writes calls; None when its template writes none, or in a form not known."""
    try:
        text = conversations.text(_PROBE, _PROBE_TOOLS)
    except HoneError:  # it refuses calls, or there is no template that works
        return None
    return next((form for form in FORMATS if form.written.search(text)), None)


class CallWriter:
    """How one model writes calls, with its own vocabulary.

    Attributes:
        form: the form of its family.
        signs: spellings of the special tokens by which it marks calls.
        opener: the special token with which calls begin, which no grammar can write; None where
            they begin with text.
    """

    def __init__(self, form: CallFormat, tokenizer: Tokenizer) -> None:
        self.form = form
        ids = {sign: tokenizer.token_to_id(sign) for sign in form.signs}
        self.signs = {index: sign for sign, index in ids.items() if index in tokenizer.special_ids}
        begins = form.first.startswith(form.signs[0]) and form.signs[0] in self.signs.values()
        self.opener = ids[form.signs[0]] if begins else None

    def forced(self, tools: Tools, several: bool) -> Grammar:
        """An output that is a call of one of these functions, or several calls.

        Where there is an ``opener`` it is to be put behind the prompt.

        Raises:
            RequestError: calls of this form cannot be forced.
        """
        rules = self._rules(tools, several)
        return Grammar("lark", "\n".join(["start: calls", *rules, ""]))

    def answer_or(self, answer: Grammar, tools: Tools, several: bool) -> Grammar:
        """An output that is either calls or what ``answer``, a JSON schema, says.

        Raises:
            RequestError: calls of this form cannot be told from other JSON by a grammar.
        """
        if self.opener is not None or answer.kind != "json":
            raise RequestError(
                "response_format cannot be used together with tools of this model; leave one out."
            )
        rules = self._rules(tools, several)
        start = ["start: answer | calls", f"answer: %json {_schema(_loaded(answer.source))}"]
        return Grammar("lark", "\n".join([*start, *rules, ""]))

    def _rules(self, tools: Tools, several: bool) -> list[str]:
        form = self.form
        if not form.before:
            raise RequestError(
                "tool_choice cannot force a call of this model, whose calls are marked by special "
                'tokens; use "auto".'
            )
        first, last = form.first, form.last
        if self.opener is not None:
            first = first.removeprefix(form.signs[0])
        marks = [sign for sign in self.signs.values() if sign in form.between]
        if marks:  # special tokens, which no grammar can write
            several, last = False, ""
        rules, calls = [], []
        for number, tool in enumerate(tools):
            function = tool["function"]
            schema = _schema(function.get("parameters") or {"type": "object"})
            before = form.before.replace("NAME", json.dumps(function["name"], ensure_ascii=False))
            calls.append(f"call{number}")
            rules.append(f"call{number}: {_quoted(before)} arguments{number} {_quoted(form.after)}")
            rules.append(f"arguments{number}: %json {schema}")
        more = f" ({_quoted(form.between)} call)*" if several else ""
        return [
            f"calls: {_quoted(first)} call{more} {_quoted(last)}",
            f"call: {' | '.join(calls)}",
            *rules,
        ]


def _schema(schema: Mapping[str, Any]) -> str:
    """A schema for a grammar, in the spacing in which templates write JSON."""
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": spacing})


def _loaded(source: str) -> dict[str, Any]:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The JSON schema is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise RequestError('The JSON schema must be an object, such as {"type": "object"}.')
    return schema


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
