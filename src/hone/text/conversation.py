"""A conversation as a model reads it: the one renderer that training and serving share.

Which part of it the assistant wrote is found in one of two ways. A template that marks answers
(``{% generation %}``) is believed. Any other is rendered twice per answer, once as serving does it
when it asks for that answer and once with the answer in it: what the second has more is the answer.
Where the whole conversation writes an answer in another way than its own rendering did (templates
drop the thinking of earlier turns), every answer is rendered on its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from hone.core.errors import CheckpointError, RequestError
from hone.text.chat import ChatTemplate
from hone.text.tokenizer import Span, Tokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
# A conversation in which a word of ours stands in every place that a template with tools writes.
_PROBE_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "probe_name",
            "description": "probe_description",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
_PROBE_CALL: dict[str, Any] = {
    "type": "function",
    "id": "probe0000",
    "function": {"name": "probe_call", "arguments": {"probe_key": "probe_value"}},
}
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]},
    {"role": "tool", "name": "probe_call", "tool_call_id": "probe0000", "content": "probe_result"},
    {"role": "assistant", "content": "b"},
]
_PROBED = ("probe_name", "probe_call", "probe_key", "probe_value", "probe_result")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the parts of it that the assistant wrote, each with what ends its turn.

    Attributes:
        spans: ``(start, end)`` in characters.
        prompted: every span begins where a prompt of serving ends; not known of a template that
            marks answers itself.
    """

    text: str
    spans: tuple[Span, ...]
    prompted: bool


class Conversations:
    """How one model writes conversations.

    Attributes:
        own: the template is the tokenizer's, not one of hone's.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None) -> None:
        """Use ``source``, or the tokenizer's own templates, or without any hone's."""
        self.tokenizer = tokenizer
        self.own = source is None and bool(tokenizer.chat_templates)
        self._source = source
        self._compiled: dict[str, ChatTemplate] = {}

    def source(self, tools: Tools = None) -> str:
        """The template for a conversation; that for a plain one is to be saved with the model.

        Raises:
            CheckpointError: there is none, and no end token from which to make one.
        """
        if self._source is None and not self.own:
            self._source = default_template(self.tokenizer)
        found = self._source or self.tokenizer.chat_template_for(tools)
        assert found is not None
        return found

    def prompt(self, messages: Messages, tools: Tools = None, **variables: Any) -> str:
        """The text up to where the model's answer begins, special tokens included.

        Raises:
            CheckpointError: the template is broken.
            RequestError: the template refuses the messages.
        """
        return self._render(messages, tools, True, variables)

    def prompt_ids(self, messages: Messages, tools: Tools = None, **variables: Any) -> list[int]:
        """The ids of :meth:`prompt`; the template writes the special tokens itself."""
        return self.tokenizer.encode(self.prompt(messages, tools, **variables))

    def text(self, messages: Messages, tools: Tools = None, **variables: Any) -> str:
        """The text of a whole conversation.

        Raises:
            RequestError: the template refuses the messages.
        """
        return self._render(messages, tools, False, variables)

    def answers(self, messages: Messages, tools: Tools, wanted: Sequence[int]) -> list[Rendered]:
        """The conversation with the answers at ``wanted`` found in it.

        Args:
            messages: they end with an answer; see ``hone.text.messages`` for their form.
            wanted: indices of messages of the assistant, ascending; none is the first message,
                which answers nothing.

        Returns:
            One text with all the answers; or one per answer, where the template does not write an
            answer in a longer conversation as it wrote it at its end.

        Raises:
            RequestError: the template refuses the messages, or its answers cannot be told.
        """
        template = self._template(tools)
        if template.marks_answers:
            found = [self._marked(template, messages, tools, wanted)]
        else:
            found = self._differences(messages, tools, wanted)
        for rendered, indices in zip(found, _shared(wanted, len(found)), strict=True):
            self._check_written(rendered, [messages[index] for index in indices])
        return found

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes functions, calls of them and their results."""
        try:
            text = self.text(_PROBE, _PROBE_TOOLS)
        except RequestError:
            return False
        return all(word in text for word in _PROBED)

    @cached_property
    def folds_system(self) -> bool:
        """Whether a system message goes before the first user's, as the template refuses it."""
        user = [{"role": "user", "content": "a"}]
        try:
            self._template(None).render(user)
        except RequestError:
            return False
        try:
            self._template(None).render([{"role": "system", "content": "b"}, *user])
        except RequestError:
            return True
        return False

    def _template(self, tools: Tools) -> ChatTemplate:
        source = self.source(tools)
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source, self.tokenizer.config)
        return self._compiled[source]

    @cached_property
    def _signs(self) -> tuple[str, ...]:
        """The spellings of the tokens with which a turn may end."""
        spelled = map(self.tokenizer.id_to_token, sorted(self.tokenizer.special_ids))
        return tuple({*filter(None, spelled), *filter(None, [self.tokenizer.eos_token])})

    def _render(
        self, messages: Messages, tools: Tools, prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        return self._template(tools).render(
            self._fitted(messages), tools, add_generation_prompt=prompt, **variables
        )

    @cached_property
    def _joins_arguments(self) -> bool:
        """Whether the template joins a call's arguments to a text, so that they must be JSON."""
        for messages, as_text in ((_PROBE, False), (_with_json_arguments(_PROBE), True)):
            try:
                self._template(_PROBE_TOOLS).render(messages, _PROBE_TOOLS)
            except RequestError:
                continue
            return as_text
        return False

    def _fitted(self, messages: Messages) -> Messages:
        """``messages`` in the form that this template reads."""
        if any(item.get("tool_calls") for item in messages) and self._joins_arguments:
            messages = _with_json_arguments(messages)
        if len(messages) < 2 or messages[0].get("role") != "system" or not self.folds_system:
            return messages
        system, first, *rest = messages
        if first.get("role") != "user" or not isinstance(first.get("content"), str):
            return messages
        return [{**first, "content": f"{system.get('content')}\n\n{first['content']}"}, *rest]

    def _marked(
        self, template: ChatTemplate, messages: Messages, tools: Tools, wanted: Sequence[int]
    ) -> Rendered:
        text, spans = template.render_marked(self._fitted(messages), tools)

        def blocks_before(index: int) -> int:
            if index == 0:
                return 0
            return len(template.render_marked(self._fitted(messages[:index]), tools)[1])

        answers = [index for index, item in enumerate(messages) if item["role"] == "assistant"]
        if list(wanted) != answers:
            cuts = [(blocks_before(i), blocks_before(i + 1)) for i in wanted]
            spans = [span for first, last in cuts for span in spans[first:last]]
        if not spans:
            raise RequestError("The chat template's generation blocks wrote nothing.")
        return Rendered(text, tuple(spans), prompted=False)

    def _differences(
        self, messages: Messages, tools: Tools, wanted: Sequence[int]
    ) -> list[Rendered]:
        whole = self.text(messages, tools)
        alone, stable = [], True
        for index in wanted:
            start = self.prompt(messages[:index], tools)
            last = index == len(messages) - 1
            text = whole if last else self.text(messages[: index + 1], tools)
            if not text.startswith(start):
                raise RequestError(
                    "The chat template asks for an answer in another way than it writes one, so "
                    "that training would not fit serving; give another template."
                )
            if not text[len(start) :].strip():
                raise RequestError("The chat template writes nothing of an answer.")
            followed = self._followed(messages, tools) if last else whole
            text, end = self._ended(text, len(start), followed)
            alone.append(Rendered(text, ((len(start), end),), prompted=True))
            stable = stable and (last or whole[:end] == text[:end])
        if not stable:
            return alone
        return [Rendered(alone[-1].text, tuple(item.spans[0] for item in alone), prompted=True)]

    def _followed(self, messages: Messages, tools: Tools) -> str:
        """The conversation with a question behind it; nothing where the template refuses that."""
        try:
            return self.text([*messages, {"role": "user", "content": "a"}], tools)
        except RequestError:
            return ""

    def _ended(self, text: str, start: int, followed: str) -> tuple[str, int]:
        """Where the answer from ``start`` on ends, together with the token that ends its turn.

        What a template writes behind that token (a line feed, or the end of the whole conversation)
        comes after serving stopped. Where it writes none, what begins the next turn ends this one;
        or else the end token does, which is put there.

        Args:
            text: it ends with the answer.
            followed: the same with more turns.
        """
        shared = self._shared(text, followed)
        place = len(text[:shared].rstrip())
        if self._ends_with_sign(text, start, place) and self._only_signs(text[shared:]):
            return text, place
        place = len(text.rstrip())
        if self._ends_with_sign(text, start, place):
            return text, place
        behind = followed[len(text) :] if followed.startswith(text) else ""
        sign = max((s for s in self._signs if behind.startswith(s)), key=len, default="")
        if not sign:
            if self.tokenizer.eos_token is None:
                raise RequestError(
                    "The chat template ends no answer with a token of its own, and the tokenizer "
                    "has no end token (eos_token) for it."
                )
            text, sign = text[:place], self.tokenizer.eos_token
        return text + sign, len(text + sign)

    def _shared(self, text: str, other: str) -> int:
        """How far two texts are the same, up to a whole sign."""
        if other.startswith(text):
            return len(text)
        both = zip(text, other, strict=False)
        end = next((at for at, (a, b) in enumerate(both) if a != b), len(other))
        longest = max(map(len, self._signs), default=0)
        for start in range(max(end - longest, 0), end):
            if any(text.startswith(s, start) and start + len(s) > end for s in self._signs):
                return start
        return end

    def _ends_with_sign(self, text: str, start: int, end: int) -> bool:
        return end > start and text.endswith(self._signs, start, end)

    def _only_signs(self, text: str) -> bool:
        while text := text.strip():
            sign = max((s for s in self._signs if text.startswith(s)), key=len, default="")
            if not sign:
                return False
            text = text[len(sign) :]
        return True

    def _check_written(self, rendered: Rendered, messages: Messages) -> None:
        """Templates leave out what they do not know (calls, a content that is text) in silence."""
        written = "".join(rendered.text[start:end] for start, end in rendered.spans)
        for message in messages:
            # What stands before it is the template's to arrange.
            if message["content"].rpartition("</think>")[2].strip() not in written:
                raise RequestError(
                    "The chat template does not write an answer as it is given; give one that does."
                )
            for call in message.get("tool_calls", ()):
                if call["function"]["name"] not in written:
                    raise RequestError(
                        "The chat template does not write tool calls; give one that does."
                    )


def _with_json_arguments(messages: Messages) -> list[dict[str, Any]]:
    """Calls as OpenAI's clients write them."""
    made = []
    for message in messages:
        calls = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                },
            }
            for call in message.get("tool_calls") or ()
        ]
        made.append({**message, **({"tool_calls": calls} if calls else {})})
    return made


def default_template(tokenizer: Tokenizer) -> str:
    """hone's template for a model without one: ChatML where its tokens exist, else plain headings.

    Raises:
        CheckpointError: the tokenizer has no end token, so that no answer could end.
    """
    if all(tokenizer.token_to_id(token) is not None for token in ("<|im_start|>", "<|im_end|>")):
        source = _source("chatml")
    elif tokenizer.eos_token is None:
        raise CheckpointError(
            "The tokenizer has neither a chat template nor an end token (eos_token) from which to "
            "make one; name the end token in tokenizer_config.json."
        )
    else:
        source = _source("plain")
    begins = tokenizer.encode("a", add_special_tokens=True)[:1] == [tokenizer.bos_id]
    return "{{- bos_token }}\n" + source if begins else source


def _source(name: str) -> str:
    file = resources.files("hone.text") / "templates" / f"{name}.jinja"
    return file.read_text(encoding="utf-8")


def _shared(wanted: Sequence[int], texts: int) -> list[Sequence[int]]:
    return [wanted] if texts == 1 else [[index] for index in wanted]
