"""Supervised tuning: examples to samples with a loss on the answers alone.

Nothing that was to be trained is left out in silence. What is too long for a sample is shortened
where it hurts least, in this order: a conversation is cut between turns into several, each of which
keeps the system message, and every answer is trained once; the prompt of a lone answer loses its
beginning; an answer that does not fit by itself is dropped, and counted with its reason and line.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, TypeVar

import numpy as np

from hone.core.errors import CheckpointError, ConfigError, DataError, RequestError
from hone.core.progress import progress
from hone.data.conversations import Completion, Conversation, Document, Example
from hone.data.samples import IGNORED, Sample
from hone.data.tuning_report import Count, Report
from hone.text.conversation import Conversations, Rendered, default_template
from hone.text.offsets import Encoded, OffsetEncoder
from hone.text.tokenizer import Tokenizer

Item = TypeVar("Item")
# Examples that are rendered before their texts are encoded together, on all cores.
_GROUP = 256
_CUT_TURNS = "a conversation was cut between turns"
_CUT_PROMPT = "the beginning of a prompt was cut"
_CUT_DOCUMENT = "a document was cut into pieces"
_NO_TOOLS = "the functions on offer were left out, as the chat template does not write any"
_TOO_LONG = "an answer is longer than max_length by itself"
_NO_ANSWER = "there is no answer to train"


def choose_template(tokenizer: Tokenizer, tools: bool) -> tuple[Conversations, str]:
    """How to write conversations for a model, and why so.

    Args:
        tools: the data offers functions or calls them.

    Returns:
        the tokenizer's own template; or hone's, where there is none, or where the tokenizer's
        leaves out functions that the data has.

    Raises:
        CheckpointError: see :class:`hone.text.conversation.Conversations`.
    """
    own = Conversations(tokenizer)
    if not own.own:
        return own, "hone's, because the model has none"
    if not tools or own.writes_tools:
        system = ", which knows no system message: it goes before the first user's"
        return own, "the model's" + system * own.folds_system
    return Conversations(tokenizer, default_template(tokenizer)), (
        "hone's, because the model's does not write the tools that the data has"
    )


def tokenise(
    examples: Iterable[Example],
    writer: Conversations,
    max_length: int,
    train_on: str = "all",
) -> tuple[list[Sample], Report]:
    """The samples of ``examples``, in their order.

    A conversation is trained on its answers and what ends their turns; a completion on itself and
    the end token after it; a document whole. The ids up to an answer are those that serving feeds
    when it asks for it.

    Args:
        examples: see ``hone.data.conversations``.
        max_length: positions that a sample may have.
        train_on: ``all`` answers of a conversation, or the ``last`` one.

    Raises:
        CheckpointError: the tokenizer lacks what conversations or completions need.
        ConfigError: ``max_length`` or ``train_on`` cannot be used.
        DataError: nothing is left to train on.
    """
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}; a sample needs at least 2 positions.")
    if train_on not in ("all", "last"):
        raise ConfigError(f'train_on is {train_on!r}; choose "all" or "last".')
    work = _Tokeniser(writer, max_length, train_on)
    total = length_hint(examples, 0)
    with progress("Tokenising", max(total, 1), "examples") as bar:
        for group in _groups(examples, _GROUP):
            work.add(group)
            bar.advance(len(group))
    if not work.samples:
        raise DataError("Nothing is left to train on: " + "; ".join(work.report.sentences()) + ".")
    return work.samples, work.report


@dataclass(frozen=True, slots=True)
class _Part:
    """A conversation, or what is left of one, that ends with the last of its wanted answers."""

    whole: Conversation
    messages: list[dict[str, Any]]
    wanted: tuple[int, ...]

    def until(self, answers: Sequence[int]) -> "_Part":
        """The messages up to the last of ``answers``, of which these are trained."""
        return _Part(self.whole, self.messages[: answers[-1] + 1], tuple(answers))

    def since(self, turn: int) -> "_Part":
        """The system message and what begins with message ``turn``; all from 0 on."""
        if not turn:
            return self
        head = self.messages[:1] if self.messages[0]["role"] == "system" else []
        moved = len(head) - turn
        wanted = tuple(index + moved for index in self.wanted if index >= turn)
        return _Part(self.whole, head + self.messages[turn:], wanted)

    def turns(self) -> list[int]:
        """Where a turn of the user begins behind the first one."""
        users = [i for i, item in enumerate(self.messages) if item["role"] == "user"]
        return [i for i in users[1:] if self.messages[i - 1]["role"] != "user"]


class _Tokeniser:
    def __init__(self, writer: Conversations, max_length: int, train_on: str) -> None:
        self.writer, self.max_length, self.train_on = writer, max_length, train_on
        self.tokenizer = writer.tokenizer
        self.encoder = OffsetEncoder(self.tokenizer)
        self._special = {*self.tokenizer.special_ids, self.tokenizer.eos_id}
        self.samples: list[Sample] = []
        self.report = Report()
        self._number = 0  # of the example whose samples are made

    def add(self, group: Sequence[Example]) -> None:
        """The examples of a group, in order, whatever their kinds."""
        first = self.report.examples + 1
        self.report.examples += len(group)
        rendered: list[tuple[_Part, Rendered]] = []
        texts: list[tuple[str, bool]] = []
        for example in group:
            if isinstance(example, Conversation):
                rendered += self._render_whole(example)
            elif isinstance(example, Completion):
                whole = example.prompt + example.completion
                texts += [(example.prompt, True), (whole, True)]
            else:
                texts.append((example.text, True))
        encoded = iter(self.encoder.encode_batch([item.text for _, item in rendered]))
        ids = iter(
            self.tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=True)
        )
        parts = iter(rendered)
        part = next(parts, None)
        for self._number, example in enumerate(group, first):
            if isinstance(example, Completion):
                self._completion(example, next(ids), next(ids))
            elif isinstance(example, Document):
                self._document(example, next(ids))
            else:
                while part is not None and part[0].whole is example:
                    self._conversation(*part, next(encoded))
                    part = next(parts, None)

    def _render_whole(self, whole: Conversation) -> list[tuple[_Part, Rendered]]:
        answers = [
            index
            for index, message in enumerate(whole.messages)
            if index
            and message["role"] == "assistant"
            and _says_anything(message)
            and index not in whole.untrained
        ]
        if not answers:
            self._drop(_NO_ANSWER, whole.line)
            return []
        if self.train_on == "last":
            answers = answers[-1:]
        if whole.tools and not self.writer.writes_tools:
            self._count(self.report.truncated, _NO_TOOLS, whole.line)
        try:
            return self._render(_Part(whole, whole.messages, tuple(answers)).until(answers))
        except RequestError as error:
            self._drop(str(error).rstrip("."), whole.line)
            return []

    def _render(self, part: _Part) -> list[tuple[_Part, Rendered]]:
        """``part`` as text; as several where the template must write its answers one by one.

        Raises:
            RequestError: the template refuses it.
        """
        found = self.writer.answers(part.messages, part.whole.tools, part.wanted)
        if len(found) == 1:
            return [(part, found[0])]
        parts = [part.until([index]) for index in part.wanted]
        return list(zip(parts, found, strict=True))

    def _conversation(self, part: _Part, rendered: Rendered, encoded: Encoded) -> None:
        samples = self._masked(rendered, encoded)
        if all(sample.length <= self.max_length for sample in samples):
            for sample in samples:
                self._keep(sample, part.whole.line)
        else:
            self._cut(part)

    def _cut(self, part: _Part) -> None:
        """``part`` in several, of which each but the first is as long as fits."""
        pieces: list[_Part] = []
        while part.wanted:
            turns = [0, *part.turns()]
            at = self._first_that_fits(part, turns)
            if at < len(turns):
                pieces.append(part.since(turns[at]))
                rest = [index for index in part.wanted if index < turns[at]]
                if turns[at]:
                    self._count(self.report.truncated, _CUT_TURNS, part.whole.line)
            else:  # the last answer does not fit behind its own turn
                *rest, last = part.wanted
                pieces.append(part.until([last]).since(turns[-1]))
            part = part.until(rest) if rest else _Part(part.whole, [], ())
        for piece in reversed(pieces):
            try:
                samples = self._encode(piece)
            except RequestError as error:
                self._drop(str(error).rstrip("."), piece.whole.line)
                continue
            for sample in samples:
                self._keep_end(sample, piece.whole.line)

    def _first_that_fits(self, part: _Part, turns: Sequence[int]) -> int:
        """Of ``turns`` the first with which what is left of ``part`` fits; their number if none.

        From the end on in steps that double: what is much too long is never written.
        """

        def fits(turn: int) -> bool:
            try:
                samples = self._encode(part.since(turn))
            except RequestError:
                return False
            return all(sample.length <= self.max_length for sample in samples)

        high, step = len(turns), 1
        while high:
            low = max(high - step, 0)
            if not fits(turns[low]):
                return bisect_left(turns, True, low + 1, high, key=fits)
            high, step = low, 2 * step
        return 0

    def _encode(self, part: _Part) -> list[Sample]:
        found = self._render(part)
        encoded = self.encoder.encode_batch([rendered.text for _, rendered in found])
        return [
            sample
            for (_, rendered), item in zip(found, encoded, strict=True)
            for sample in self._masked(rendered, item)
        ]

    def _masked(self, rendered: Rendered, encoded: Encoded) -> list[Sample]:
        """The sample of a text; one per answer where its ids are not those of serving.

        Serving encodes a prompt by itself: white space at its end may become other tokens than
        with the answer behind it, and no token holds its end and the answer's beginning.
        """
        if rendered.prompted and not all(
            self.encoder.begins_with(encoded, rendered.text, start) for start, _ in rendered.spans
        ):
            return [
                _sample(
                    (prompt := self.tokenizer.encode(rendered.text[:start]))
                    + (answer := self.encoder.encode_continuation(rendered.text[start:end])),
                    [range(len(prompt), len(prompt) + len(answer))],
                )
                for start, end in rendered.spans
            ]
        return [_sample(encoded.ids, [encoded.tokens_of(span) for span in rendered.spans])]

    def _completion(self, example: Completion, prompt: list[int], whole: list[int]) -> None:
        eos = self.tokenizer.eos_id
        if not example.completion.strip():
            self._drop(_NO_ANSWER, example.line)
            return
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
        else:  # the text's tokens are others than the prompt's, with which serving begins
            completion = self.encoder.encode_continuation(example.completion)
        if not prompt and self.tokenizer.bos_id is not None:
            prompt = [self.tokenizer.bos_id]
        if eos is None:
            raise CheckpointError(
                "The tokenizer names no end token (eos_token), so that no completion could end; "
                "name it in tokenizer_config.json."
            )
        if completion[-1:] != [eos]:
            completion = [*completion, eos]
        ids = [*prompt, *completion]
        sample = _sample(ids, [range(len(prompt), len(ids))])
        if sample.length > self.max_length:
            self._keep_end(sample, example.line)
        else:
            self._keep(sample, example.line)

    def _document(self, example: Document, ids: list[int]) -> None:
        eos = self.tokenizer.eos_id
        if eos is not None and ids[-1:] != [eos]:
            ids = [*ids, eos]
        if len(ids) - 1 > self.max_length:
            self._count(self.report.truncated, _CUT_DOCUMENT, example.line)
        for start in range(0, max(len(ids) - 1, 1), self.max_length):
            piece = ids[start : start + self.max_length + 1]
            self._keep(_sample(piece, [range(len(piece))]), example.line, ends=False)

    def _keep_end(self, sample: Sample, line: int) -> None:
        """The end of a sample, which holds its answer, under the token that begins every text."""
        first = next((i for i, label in enumerate(sample.labels) if label != IGNORED), 0)
        over = sample.length - self.max_length
        if over <= 0:
            self._keep(sample, line)
            return
        if over > first:
            self._drop(_TOO_LONG, line)
            return
        self._count(self.report.truncated, _CUT_PROMPT, line)
        ids, labels = sample.ids[over:], sample.labels[over:]
        if sample.ids[0] == self.tokenizer.bos_id and over < first:
            ids = array("i", [sample.ids[0], *ids[1:]])
        self._keep(Sample(ids, labels), line)

    def _keep(self, sample: Sample, line: int, ends: bool = True) -> None:
        trained = len(sample.labels) - list(sample.labels).count(IGNORED)
        if not trained:
            self._drop(_NO_ANSWER, line)
            return
        self.samples.append(sample)
        self.report.numbers.append(self._number)
        self.report.lines.append(line)
        self.report.lengths.append(sample.length)
        self.report.trained += trained
        if ends:
            self.report.ends.update(self._ends(sample))

    def _ends(self, sample: Sample) -> Iterator[int]:
        """The special token with which each answer ends, but for what a template adds to it."""
        trained = np.asarray(sample.labels) != IGNORED
        for at in np.flatnonzero(trained & ~np.append(trained[1:], False)).tolist():
            tail = reversed(sample.labels[max(at - 2, 0) : at + 1])
            yield from islice((i for i in tail if i in self._special), 1)

    def _drop(self, reason: str, line: int) -> None:
        self._count(self.report.dropped, reason, line)

    @staticmethod
    def _count(counts: dict[str, Count], reason: str, line: int) -> None:
        counts.setdefault(reason, Count(0, line)).times += 1


def _sample(ids: Sequence[int], trained: Iterable[range]) -> Sample:
    """A causal sample that ends where its last trained token is the label."""
    whole = array("i", ids)
    labels = array("i", [IGNORED]) * len(whole)
    last = 0
    for tokens in trained:
        first = max(tokens.start, 1)  # nothing comes before token 0, from which to tell it
        if first < tokens.stop:
            labels[first - 1 : tokens.stop - 1] = whole[first : tokens.stop]
            last = max(last, tokens.stop - 1)
    return Sample(whole[:last], labels[:last])


def _says_anything(message: dict[str, Any]) -> bool:
    thought = any(message.get(key) for key in ("reasoning_content", "thinking", "reasoning"))
    return bool(message["content"].strip() or message.get("tool_calls") or thought)


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
