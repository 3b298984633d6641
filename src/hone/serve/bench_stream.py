"""One request of a load: what is sent, and what came back when.

A request counts from the moment it arrives: opening its connection is part of its time to the first
token.
"""

import asyncio
import json
import time
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

from hone.serve.bench_client import Address, RequestFailedError, ask, events
from hone.serve.bench_workload import Ask

Api = Literal["completions", "chat"]
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and how.

    Attributes:
        usage: ask for the number of tokens at the end of a stream.
        timeout: seconds that a request may take.
        fields: added to every request, such as ``{"temperature": 0}``.
    """

    address: Address
    model: str
    api: Api = "completions"
    usage: bool = True
    timeout: float = 600.0
    fields: dict[str, Any] = field(default_factory=dict)

    def body(self, wanted: Ask, stream: bool = True) -> dict[str, Any]:
        """The request as JSON."""
        asked = {"prompt": wanted.prompt} if self.api == "completions" else {}
        if self.api == "chat":
            asked["messages"] = wanted.messages
        body = {"model": self.model, **asked, "max_tokens": wanted.max_tokens, **self.fields}
        if stream:
            body["stream"] = True
            if self.usage:
                body["stream_options"] = {"include_usage": True}
        return body


@dataclass(slots=True)
class Answer:
    """What became of one request; times are seconds since the load began.

    Attributes:
        asked: the request.
        start, end: of the request; ``end`` is None while it runs.
        times: of every piece of text.
        text: all pieces.
        tokens: of the answer; the number of pieces where the server does not tell.
        prompt_tokens: 0 where the server does not tell.
        trouble: empty for a whole answer; "vanished" when the client left on purpose, else the
            kind of a :class:`RequestFailedError`.
    """

    asked: Ask
    start: float
    end: float | None = None
    times: array = field(default_factory=lambda: array("d"))
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    trouble: str = ""
    detail: str = ""

    @property
    def whole(self) -> bool:
        """It ended as it should."""
        return self.end is not None and not self.trouble

    @property
    def ttft(self) -> float:
        """Seconds to the first piece of text; to the end of an answer without text."""
        assert self.end is not None
        return (self.times[0] if self.times else self.end) - self.start

    @property
    def per_token(self) -> float:
        """Mean seconds between tokens."""
        if len(self.times) < 2:
            return 0.0
        return (self.times[-1] - self.times[0]) / max(self.tokens - 1, 1)


async def send(target: Target, answer: Answer, begun: float) -> float | None:
    """Ask, and fill ``answer`` in; returns the seconds that a refusing server asks to wait."""
    try:
        async with asyncio.timeout(target.timeout):
            await _read(target, answer, begun)
    except RequestFailedError as error:
        answer.trouble, answer.detail = error.kind, error.detail
        return error.retry_after
    except TimeoutError:
        answer.trouble, answer.detail = "timeout", f"no end within {target.timeout:g} s"
    finally:
        # A stream that was cancelled has no end: it is still under way.
        if answer.trouble or answer.end is not None:
            answer.end = time.perf_counter() - begun
    return None


async def _read(target: Target, answer: Answer, begun: float) -> None:
    order = _Order()
    pieces: list[str] = []
    counted = None
    stream = events(target.address, _PATHS[target.api], target.body(answer.asked))
    try:
        async for data in stream:
            now = time.perf_counter() - begun
            piece, usage = order.follow(data)
            if piece:
                pieces.append(piece)
                answer.times.append(now)
                if len(pieces) == answer.asked.leave_after:
                    raise RequestFailedError("vanished")
            counted = usage or counted
        order.finish()
        answer.end = time.perf_counter() - begun
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
        answer.text = "".join(pieces)
        answer.tokens = len(pieces)
        if counted:
            answer.tokens = int(counted.get("completion_tokens") or len(pieces))
            answer.prompt_tokens = int(counted.get("prompt_tokens") or 0)


class _Order:
    """What may follow what in a stream: text, then a reason to finish, then usage, then [DONE]."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._finished = self._done = False

    def follow(self, data: str) -> tuple[str, dict[str, Any] | None]:
        """The text and the usage of an event.

        Raises:
            RequestFailedError: the event cannot stand here.
        """
        if self._done:
            raise RequestFailedError("out of order", "an event after [DONE]")
        if data == "[DONE]":
            self._done = True
            return "", None
        try:
            event = json.loads(data)
            if event.get("error"):
                found = event["error"]
                told = found.get("message", found) if isinstance(found, dict) else found
                raise RequestFailedError("error in the stream", str(told))
            choices, name = event["choices"], event.get("id")
            text, reason = _content(choices[0]) if choices else ("", None)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise RequestFailedError("not the protocol", f"an event {data[:80]!r}") from error
        if name is not None and self._id not in (None, name):
            raise RequestFailedError("out of order", f"a piece of {name} in {self._id}")
        self._id = name
        if self._finished and (text or reason):
            raise RequestFailedError("out of order", "text after the reason to finish")
        if not choices and not self._finished:
            raise RequestFailedError("out of order", "usage before the reason to finish")
        self._finished = self._finished or reason is not None
        return text, event.get("usage")

    def finish(self) -> None:
        """The connection has ended."""
        if not self._done:
            raise RequestFailedError("cut off", "the stream ends without [DONE]")
        if not self._finished:
            raise RequestFailedError("out of order", "[DONE] without a reason to finish")


def _content(choice: dict[str, Any]) -> tuple[str, str | None]:
    """The text and the finish reason of a choice; what a model thinks aloud is text as well."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or "", choice.get("finish_reason")
    text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
    for call in delta.get("tool_calls") or ():
        text += call["function"].get("arguments") or ""
    return text, choice.get("finish_reason")


async def whole(target: Target, wanted: Ask) -> dict[str, Any]:
    """The answer to a request without a stream.

    Raises:
        RequestFailedError: there is none.
    """
    body = target.body(wanted, stream=False)
    try:
        async with asyncio.timeout(target.timeout):
            answer = await ask(target.address, "POST", _PATHS[target.api], body)
    except TimeoutError as error:
        raise RequestFailedError("timeout", f"no answer within {target.timeout:g} s") from error
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise RequestFailedError("not the protocol", f"the answer {str(answer)[:80]!r}")
    return answer


async def text_alone(target: Target, wanted: Ask) -> str:
    """The text of the answer to a request without a stream.

    Raises:
        RequestFailedError: there is none.
    """
    choice = (await whole(target, wanted))["choices"][0]
    return str((choice.get("message") or {}).get("content") or choice.get("text") or "")
