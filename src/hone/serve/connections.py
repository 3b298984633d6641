"""Connections that get a bounded time and room to say what they want.

uvicorn waits for the end of a request's head as long as its sender likes and, with httptools, keeps
all of it: a few clients that send a byte now and then hold every connection that there can be.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_HEAD_SECONDS = 20.0
_HEAD_BYTES = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"


class Connection(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """uvicorn's, closed where a head does not come in time or is too large.

    Attributes:
        most: bytes of one request; a body in tiny chunks has several times its own size.
    """

    most = 8 * 1024 * 1024

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Somebody is there."""
        super().connection_made(transport)
        self._part: tuple[Any, bool] = None, True
        self._received = 0
        self._due: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or of several."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        cycle = self.cycle
        answered = cycle is None or cycle.response_complete
        # One that was answered early may still send its body.
        head = answered and (cycle is None or not cycle.more_body)
        if self._part != (cycle, head):
            self._part, self._received = (cycle, head), 0
        self._received += len(data)
        if self._received > _HEAD_BYTES + (0 if head else self.most):
            if head:
                self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif not answered:
            self._stop_waiting()
        elif self._due is None:
            self._wait()

    def _wait(self) -> None:
        self._due = self.loop.call_later(_HEAD_SECONDS, self._close)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        self._due = None
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.close()
