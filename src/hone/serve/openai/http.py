"""One call over ASGI: its body, its answer, and the client that may go away at any time."""

import asyncio
import logging
import re
import uuid
from collections.abc import Coroutine, Iterable
from typing import Any

from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from hone.serve.limits import Bounds
from hone.serve.openai.errors import ApiError

_log = logging.getLogger("hone.serve")
_JSON = (b"content-type", b"application/json")
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies pass each event on at once
]
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# A body comes within this time, and an error is written within the second, or never.
_BODY_SECONDS = 30.0
_ERROR_SECONDS = 5.0

Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):  # noqa: N818 - as one would say it
    """The client closed the connection: nobody is there to answer to."""


class Call:
    """A call under way.

    Attributes:
        id: what the client names it by, or a new one; sent back as x-request-id.
        owner: whose key it came with.
        status: of the answer; 0 before it began.
        logs_content: what is answered is written to the log.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        fits = _REQUEST_ID.fullmatch(given) is not None
        self.id = given.decode() if fits else uuid.uuid4().hex
        self.owner = ""
        self.status = 0
        self._streams = self._ended = False
        self.logs_content = False

    async def body(self, bounds: Bounds) -> bytes:
        """The whole body.

        Raises:
            Refusal: 413, it is too large.
            ApiError: 408, it does not come.
            ClientGone: the client left before it was complete.
        """
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit():
            bounds.check_body(int(length[:18]))
        parts = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts += message.get("body", b"")
                    bounds.check_body(len(parts))
                    if not message.get("more_body", False):
                        return bytes(parts)
        except TimeoutError:
            raise ApiError(
                408, f"The body did not come within {_BODY_SECONDS:g} seconds.", None, "slow_body"
            ) from None

    async def work(self, task: Coroutine[Any, Any, None], bounds: Bounds) -> None:
        """Run ``task``, which answers; cancel it when the client goes, or takes too long.

        Raises:
            Refusal: 408, the time is over.
            ClientGone: the client left.
        """
        worker = asyncio.create_task(task)
        watcher = asyncio.create_task(self._gone())
        try:
            await asyncio.wait(
                (worker, watcher), timeout=bounds.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if worker.done():
                return worker.result()
            raise ClientGone if watcher.done() else bounds.too_slow()
        finally:
            watcher.cancel()
            worker.cancel()
            await asyncio.wait((worker, watcher))

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        """Answer with JSON."""
        await self.answer(to_json(value, inf_nan_mode="null"), status, [_JSON, *headers])

    async def answer(self, body: bytes, status: int = 200, headers: Headers = ()) -> None:
        """Answer with these bytes."""
        self._log(body)
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [length, *headers])
        self._ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, value: Any) -> None:
        """Send one event of a stream; the first one begins it."""
        if not self.status:
            self._streams = True
            await self._start(200, _EVENTS)
        await self._write(b"data: " + to_json(value, inf_nan_mode="null") + b"\n\n")

    async def done(self) -> None:
        """End a stream."""
        self._ended = True
        await self._write(b"data: [DONE]\n\n", more=False)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, in the stream where one has begun."""
        if self._ended:
            return
        try:
            async with asyncio.timeout(_ERROR_SECONDS):
                if self._streams:
                    await self.event(error.body)
                    await self.done()
                elif not self.status:
                    await self.json(error.body, error.status, error.headers)
        except TimeoutError:
            pass  # a client that reads nothing gets nothing

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        message: Message = {"type": "http.response.start", "status": status}
        message["headers"] = [*headers, (b"x-request-id", self.id.encode())]
        await self._send(message)

    def _log(self, data: bytes) -> None:
        if self.logs_content:
            _log.info("id=%s answers %r", self.id, data.decode("utf-8", "replace"))

    async def _write(self, data: bytes, more: bool = True) -> None:
        self._log(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def bearer(headers: dict[bytes, bytes]) -> str | None:
    """The key of an Authorization header; None where there is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    return key.strip().decode("utf-8", "surrogateescape")
