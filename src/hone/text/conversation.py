"""A conversation as a model reads it: the one renderer that training and serving share.

Which part of it the assistant wrote is found in one of two ways. A template that marks answers
(``{% generation %}``) is believed. Any other is rendered twice per answer, once as serving does it
when it asks for that answer and once with the answer in it: what the second has more is the answer.
Where the whole conversation writes an answer in another way than its own rendering did (templates
drop the thinking of earlier turns), every answer is rendered on its own.
"""

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
            self._check_calls(rendered, [messages[index] for index in indices])
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
        written = self.tokenizer.backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in written if token.content[-1:] > " ")

    def _render(
        self, messages: Messages, tools: Tools, prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        return self._template(tools).render(
            self._folded(messages), tools, add_generation_prompt=prompt, **variables
        )

    def _folded(self, messages: Messages) -> Messages:
        if len(messages) < 2 or messages[0].get("role") != "system" or not self.folds_system:
            return messages
        system, first, *rest = messages
        if first.get("role") != "user" or not isinstance(first.get("content"), str):
            return messages
        return [{**first, "content": f"{system.get('content')}\n\n{first['content']}"}, *rest]

    def _marked(
        self, template: ChatTemplate, messages: Messages, tools: Tools, wanted: Sequence[int]
    ) -> Rendered:
        text, spans = template.render_marked(self._folded(messages), tools)

        def blocks_before(index: int) -> int:
            if index == 0:
                return 0
            return len(template.render_marked(self._folded(messages[:index]), tools)[1])

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
            end = self._end(text, len(start))
            if end == len(start):
                raise RequestError("The chat template writes nothing of an answer.")
            alone.append(Rendered(text, ((len(start), end),), prompted=True))
            stable = stable and whole[:end] == text[:end]
        if not stable:
            return alone
        return [Rendered(whole, tuple(item.spans[0] for item in alone), prompted=True)]

    def _end(self, text: str, start: int) -> int:
        """Where the answer that begins at ``start`` ends: with the token that ends its turn.

        What a template writes behind that token (a line feed, mostly) comes after serving stopped.
        """
        end = max(start, len(text.rstrip()))
        return end if text.endswith(self._signs, start, end) else len(text)

    def _check_calls(self, rendered: Rendered, messages: Messages) -> None:
        """A template that knows no tools leaves calls out without a word."""
        written = "".join(rendered.text[start:end] for start, end in rendered.spans)
        for message in messages:
            for call in message.get("tool_calls", ()):
                if call["function"]["name"] not in written:
                    raise RequestError(
                        "The chat template does not write tool calls; give one that does."
                    )


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
