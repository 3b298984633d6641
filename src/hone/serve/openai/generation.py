"""The requests of one call, followed to their ends: steps of text, calls and log-probabilities."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from hone.engine.collect import Collector
from hone.engine.request import Delta, Request, TokenLogprobs
from hone.serve.limits import Pass
from hone.serve.openai.calls import CallPart, Found, Reader
from hone.serve.openai.errors import ApiError
from hone.serve.openai.service import Service

NewReader = Callable[[], Reader]


@dataclass(slots=True)
class Step:
    """What came for one choice of an answer.

    Attributes:
        choice: its place among the choices, those of all prompts together.
        finish_reason: set with the last step of the choice.
    """

    choice: int
    text: str = ""
    calls: list[CallPart] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class Usage:
    """Tokens of a call."""

    prompt: int = 0
    output: int = 0
    cached: int = 0

    def json(self) -> dict[str, Any]:
        """``usage`` of an answer."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.output,
            "total_tokens": self.prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True, slots=True)
class Calling:
    """How outputs are read for calls of functions.

    Attributes:
        reader: makes the reader of one output.
        signs: special tokens that are to be read too, with their spellings.
        one: an output ends with its first call.
    """

    reader: NewReader
    signs: Mapping[int, str]
    one: bool


class Generation:
    """The requests of one call under way.

    Attributes:
        usage: tokens so far.
    """

    def __init__(
        self, service: Service, requests: Sequence[Request], held: Pass, calling: Calling | None
    ) -> None:
        self._service, self._requests, self._held = service, requests, held
        self._calling = calling
        self.usage = Usage(prompt=sum(len(request.prompt) for request in requests))

    async def steps(self) -> AsyncGenerator[Step, None]:
        """The steps of all choices, as they come.

        Raises:
            ApiError: 503, the engine ended an output by itself.
            HoneError: what the engine's client raises.
        """
        if len(self._requests) == 1:
            source = self._follow(self._requests[0], 0)
        else:
            source = _merged(
                [
                    self._follow(request, number * request.params.n)
                    for number, request in enumerate(self._requests)
                ]
            )
        async with aclosing(source) as steps:
            async for step in steps:
                yield step

    async def _follow(self, request: Request, first: int) -> AsyncGenerator[Step, None]:
        clock, metrics = time.perf_counter, self._service.metrics
        started, before = clock(), 0
        last: dict[int, float] = {}
        outputs = _Outputs(self._service, request, self._calling)
        # The closing is what takes a request back: after the last step, on an error, on leaving.
        async with aclosing(self._service.client.generate(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                now, count = clock(), len(delta.tokens)
                if count:
                    if not last:
                        metrics.first_token(now - started)
                        self.usage.cached += delta.cached
                    if delta.index in last:
                        metrics.next_tokens(now - last[delta.index], count)
                    last[delta.index] = now
                    before += count
                    self.usage.output += count
                    self._held.use(count)
                for step in outputs.take(delta):
                    if step.finish_reason is not None and delta.finish_reason is None:
                        self._service.client.end_output(request.id, delta.index)
                    step.choice += first
                    yield step
                if outputs.done:
                    break
        metrics.finished(outputs.reasons, clock() - started, len(request.prompt), before)


class _Outputs:
    """The ``n`` outputs of one request."""

    def __init__(self, service: Service, request: Request, calling: Calling | None) -> None:
        self._texts = service.texts
        self._collector = Collector(service.tokenizer, request.params, *_frame(service, request))
        self._grammar = request.params.grammar is not None
        self._signs = {} if calling is None else calling.signs
        self._one = calling is not None and calling.one
        count = request.params.n
        self._readers = [None if calling is None else calling.reader() for _ in range(count)]
        self._queued: list[list[TokenLogprobs]] = [[] for _ in range(count)]
        self._ended: dict[int, str] = {}
        self._count = count
        # Token by token, where it matters which of them a text belongs to.
        self._split = request.params.logprobs is not None or bool(self._signs)

    @property
    def done(self) -> bool:
        """Every output has ended."""
        return len(self._ended) == self._count

    @property
    def reasons(self) -> list[str]:
        """Why outputs ended."""
        return list(self._ended.values())

    def take(self, delta: Delta) -> Iterator[Step]:
        """The steps of a delta: none where all of its text is held back."""
        if delta.index in self._ended:
            return
        if delta.finish_reason == "abort":
            raise aborted()
        if delta.finish_reason == "error":
            # A grammar is the client's; all else that stops an output is the server's trouble.
            status = 400 if self._grammar else 500
            message = delta.error or "The engine cannot go on with this request."
            raise ApiError(status, message, None, "cannot_go_on")
        step = Step(delta.index)
        for part in _tokens(delta) if self._split else (delta,):
            self._add(part, step)
            if step.finish_reason is not None:
                self._ended[delta.index] = step.finish_reason
                break
        if step.text or step.calls or step.logprobs or step.finish_reason is not None:
            yield step

    def _add(self, delta: Delta, step: Step) -> None:
        piece = self._collector.take(delta)
        text, reader = piece.text, self._readers[delta.index]
        if len(piece.tokens) == 1:
            text += self._signs.get(piece.tokens[0], "")
        found: Found = [text] if text else []
        if reader is not None:
            found = reader.push(text) if text else []
            if piece.finish_reason is not None:
                found += reader.finish()
        for item in found:
            if isinstance(item, str):
                step.text += item
            else:
                _join(step.calls, item)
        step.finish_reason = _reason(piece.finish_reason, reader)
        if self._one and reader is not None and reader.calls:
            step.finish_reason = "tool_calls"
        self._add_logprobs(piece.logprobs, text, step)

    def _add_logprobs(self, entries: list[TokenLogprobs], text: str, step: Step) -> None:
        """Those of tokens whose text is held back wait with it: it may be a stop string's."""
        queue = self._queued[step.choice]
        queue += entries
        if step.finish_reason in ("stop", "tool_calls"):
            # What ended the output is no part of it.
            room = len(text.encode())
            while queue and (room := room - len(self._texts.bytes(queue[0].token))) >= 0:
                step.logprobs.append(queue.pop(0))
        elif text or step.finish_reason is not None:
            step.logprobs += queue
            queue.clear()


def _frame(service: Service, request: Request) -> tuple[Sequence[int], frozenset[int]]:
    """What the outputs of a request continue, and the model's tokens that end them."""
    info = service.client.info
    if info is None:
        return request.prompt, frozenset()
    opening = request.prompt if info.answer_start is None else (info.answer_start,)
    return opening, frozenset(info.end_ids)


def aborted() -> ApiError:
    """The answer to a request that the engine took back by itself."""
    message = "The engine stopped this request before it was done."
    return ApiError(503, message, None, "aborted", 1)


def _reason(reason: str | None, reader: Reader | None) -> str | None:
    return "tool_calls" if reason == "stop" and reader is not None and reader.calls else reason


def _join(calls: list[CallPart], part: CallPart) -> None:
    if calls and calls[-1].index == part.index:
        calls[-1].arguments += part.arguments
    else:
        calls.append(part)


def _tokens(delta: Delta) -> Iterator[Delta]:
    """``delta`` as deltas of one token."""
    last = len(delta.tokens) - 1
    if last < 1:
        yield delta
        return
    for at, token in enumerate(delta.tokens):
        yield replace(
            delta,
            tokens=[token],
            logprobs=delta.logprobs[at : at + 1],
            finish_reason=delta.finish_reason if at == last else None,
        )


async def _merged(sources: Sequence[AsyncGenerator[Step, None]]) -> AsyncGenerator[Step, None]:
    """What several sources bring, as it comes; the error of one ends all."""
    queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue(maxsize=len(sources))

    async def pump(source: AsyncGenerator[Step, None]) -> None:
        try:
            async with aclosing(source) as steps:
                async for step in steps:
                    await queue.put(step)
            await queue.put(None)
        except Exception as error:  # noqa: BLE001 - raised again on the other side
            await queue.put(error)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
