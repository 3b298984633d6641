"""The engine's own process: requests in, steps out. ``python -m hone.serve.worker DESCRIPTOR``.

Two threads: one waits for messages, so that the process ends with its parent whatever it is
doing; the main one owns the engine. It computes while there is work, and sleeps while there is
none. Nothing that a request holds is ever printed.
"""

import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from hone.core.errors import HoneError, RequestError
from hone.engine.request import Delta, EngineStats, Request
from hone.serve.info import ModelInfo
from hone.serve.wire import Abort, Add, Failed, Message, Ready, Refused, Settings, Step, pack
from hone.serve.wire import receive as receive_message

_STATS_EVERY = 0.1  # seconds; also how often a busy engine says that it is alive
_LONGEST_MESSAGE = 300


class Engine(Protocol):
    """What the process needs of an engine; :class:`hone.engine.engine.Engine` is one."""

    @property
    def busy(self) -> bool:
        """There is something to compute."""

    def add(self, request: Request) -> None:
        """Queue a request; raises :class:`RequestError` if it cannot be served."""

    def delay(self) -> float:
        """Seconds that may pass before the next step without loss, if nothing new comes."""

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its outputs; one that is not known is none to forget."""

    def step(self) -> list[Delta]:
        """Compute a little; returns what it brought."""

    def stats(self) -> EngineStats:
        """How the engine stands."""


Loader = Callable[..., tuple[Engine, ModelInfo]]


def main(connection: socket.socket) -> int:
    """Serve one parent until it goes; the first message it sends are the :class:`Settings`.

    Returns:
        The exit code: 1 after a failure, which was told to the parent. When the parent goes, the
        process ends at once and this does not return.
    """
    # Who runs us decides when to stop; a signal to the whole group is for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings: Settings = receive_message(connection)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()

    def send(message: Message) -> None:
        try:
            connection.sendall(pack(message))
        except OSError:
            os._exit(0)  # nobody is there

    loaded = False
    try:
        engine, info = _load(settings)
        loaded = True
        send(Ready(info, engine.stats()))
        _serve(engine, inbox, send)
    except Exception as error:  # noqa: BLE001 - the parent is told, and may start another process
        if isinstance(error, HoneError) and not loaded:
            send(Failed(str(error), hopeless=True))
            return 1
        if os.environ.get("HONE_DEBUG"):
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
        file = os.path.basename(place.filename)
        send(Failed(f"{what} ({file}, line {place.lineno})", hopeless=False))
    return 1


def _listen(connection: socket.socket, inbox: "queue.SimpleQueue[Message]") -> None:
    try:
        while True:
            inbox.put(receive_message(connection))
    except EOFError:
        # The parent is gone or wants us gone: at once, also in the middle of a step.
        os._exit(0)


def _load(settings: Settings) -> tuple[Engine, ModelInfo]:
    module, _, function = settings.factory.partition(":")
    load: Loader = getattr(importlib.import_module(module), function)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    return load(**settings.arguments)


def _serve(
    engine: Engine, inbox: "queue.SimpleQueue[Message]", send: Callable[[Message], None]
) -> None:
    handled, told = 0, -1.0
    while True:
        if not engine.busy:
            # What stands last is also what is true while nothing goes on.
            send(Step([], handled, False, engine.stats()))
            _handle(engine, inbox.get(), send)
            handled += 1
        while not inbox.empty():
            _handle(engine, inbox.get(), send)
            handled += 1
        if not engine.busy:
            continue
        if (delay := engine.delay()) > 0 and (news := _wait(inbox, delay)) is not None:
            _handle(engine, news, send)
            handled += 1
            continue
        deltas = engine.step()
        now = time.monotonic()
        due = now - told >= _STATS_EVERY
        if deltas or due:
            stats = engine.stats() if due else None
            told = now if due else told
            send(Step(deltas, handled, True, stats))


def _wait(inbox: "queue.SimpleQueue[Message]", seconds: float) -> Message | None:
    try:
        return inbox.get(timeout=seconds)
    except queue.Empty:
        return None


def _handle(engine: Engine, message: Any, send: Callable[[Message], None]) -> None:
    if isinstance(message, Abort):
        engine.abort(message.request, message.index)
        return
    assert isinstance(message, Add)
    try:
        engine.add(message.request)
    except RequestError as error:
        send(Refused(message.request.id, str(error)))


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
