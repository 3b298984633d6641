"""The server's process from its start to its end: the socket, signals, draining."""

import asyncio
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from hone.core.errors import ConfigError, HoneError
from hone.serve.client import EngineClient
from hone.serve.connections import Connection
from hone.serve.info import ModelInfo

_log = logging.getLogger("hone.serve")
_BACKLOG = 2048
_OPEN_FILES = 65536
_FRAMING = 8  # a body in chunks of a byte takes so many times its size
_LAST_BYTES = 5  # seconds for answers that are complete to reach their readers
# Whoever signals a process and then its group, as `timeout` does, means one signal.
_SAME_SIGNAL = 0.3


def listen(host: str, port: int) -> socket.socket:
    """Take the port, so that nobody else does while the model is being loaded.

    Args:
        port: 0 for any that is free.

    Raises:
        ConfigError: there is no such host here, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"There is no host {host!r}; give an address of this machine.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_explain(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is taken; stop what uses it, or choose another --port."
    if error.errno == errno.EACCES:
        return f"Port {port} is for the system alone; choose a --port of 1024 or more."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; give one that is, or 127.0.0.1."
    return f"Cannot listen on port {port} of {host}: {error.strerror or error}."


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: Any,
    client: EngineClient,
    listener: socket.socket,
    drain: float,
    ready: Callable[[ModelInfo], None],
    body_bytes: int = 8 * 1024 * 1024,
) -> None:
    """Answer requests until a signal comes: the first drains, the second ends at once.

    Args:
        app: an ASGI application that uses ``client``.
        client: not started yet; it is stopped in the end.
        listener: from :func:`listen`; it is closed in the end.
        drain: seconds for requests that run when the first signal comes.
        ready: called once, when requests are taken.
        body_bytes: the most of one body.

    Raises:
        HoneError: the model cannot be loaded, or the engine dies again and again.
    """
    _raise_open_files()

    class Bounded(Connection):
        most = _FRAMING * body_bytes

    server = _Server(
        uvicorn.Config(
            app,
            http=Bounded,
            loop="asyncio",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_LAST_BYTES,
        ),
        client,
        drain,
    )
    client.start()
    watch = asyncio.create_task(_watch(client, server, ready))
    try:
        await server.serve([listener])
    finally:
        watch.cancel()
        listener.close()
        error = client.error
        await client.stop()
    if error:
        raise HoneError(error)


def _raise_open_files() -> None:
    """Every connection is a file, and what a process is given at first is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _watch(
    client: EngineClient, server: uvicorn.Server, ready: Callable[[ModelInfo], None]
) -> None:
    try:
        await client.ready()
        assert client.info is not None
        ready(client.info)
        await client.failed()
    finally:
        server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's, with signals that wait for the engine too, and that are no error."""

    def __init__(self, config: uvicorn.Config, client: EngineClient, drain: float) -> None:
        super().__init__(config)
        self._client, self._drain = client, drain
        self._draining: asyncio.Task[None] | None = None
        self._signalled = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals for as long as the server runs."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._draining is None:
            self._signalled = now
            _log.info("Stopping: %d requests are under way.", self._client.under_way)
            self._draining = asyncio.create_task(self._finish())
            return
        if now - self._signalled < _SAME_SIGNAL:
            return
        _log.info("Stopping at once.")
        self._draining.cancel()
        self.should_exit = self.force_exit = True
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()

    async def _finish(self) -> None:
        # Meanwhile the port stays open, and new requests hear that the server stops.
        await self._client.drain(self._drain)
        self.should_exit = True
