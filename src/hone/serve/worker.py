"""The engine's own process: requests in, steps out. ``python -m hone.serve.worker DESCRIPTOR``.

Three threads: one waits for messages, so that the process ends with its parent whatever it is
doing; one prepares requests whose grammars take long to compile, so that they delay nobody; the
main one owns the engine. It computes while there is work, and sleeps while there is none. Nothing
that a request holds is ever printed.
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
from dataclasses import dataclass
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

    def prepare(self, request: Request) -> Callable[[], None] | None:
        """What takes long and must come before :meth:`add`, to be called in any thread.

        None where there is nothing; what is called raises :class:`RequestError`.
        """

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
    engine: Engine, inbox: "queue.SimpleQueue[Any]", send: Callable[[Message], None]
) -> None:
    intake, told = _Intake(engine, inbox, send), -1.0
    while True:
        if not engine.busy:
            # What stands last is also what is true while nothing goes on.
            send(Step([], intake.handled, intake.waits, engine.stats()))
            intake.take(inbox.get())
        while not inbox.empty():
            intake.take(inbox.get())
        if not engine.busy:
            continue
        if (delay := engine.delay()) > 0 and (news := _wait(inbox, delay)) is not None:
            intake.take(news)
            continue
        deltas = engine.step()
        now = time.monotonic()
        due = now - told >= _STATS_EVERY
        if deltas or due:
            stats = engine.stats() if due else None
            told = now if due else told
            send(Step(deltas, intake.handled, True, stats))


def _wait(inbox: "queue.SimpleQueue[Any]", seconds: float) -> Any:
    try:
        return inbox.get(timeout=seconds)
    except queue.Empty:
        return None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """From the thread that prepares: a request that may be added now, or what went wrong."""

    request: Request
    error: Exception | None


class _Intake:
    """Takes what comes to the engine.

    Attributes:
        handled: messages of the parent so far.
    """

    def __init__(
        self, engine: Engine, inbox: "queue.SimpleQueue[Any]", send: Callable[[Message], None]
    ) -> None:
        self._engine, self._inbox, self._send = engine, inbox, send
        self.handled = 0
        self._waiting: dict[str, Request] = {}
        self._work: queue.SimpleQueue[tuple[Request, Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._prepare, daemon=True).start()

    @property
    def waits(self) -> bool:
        """Some request is being prepared."""
        return bool(self._waiting)

    def take(self, message: Any) -> None:
        """Hand a message on to the engine, at once or when its request is prepared."""
        if isinstance(message, _Prepared):
            request = message.request
            if self._waiting.get(request.id) is not request:
                return  # taken back meanwhile
            del self._waiting[request.id]
            if message.error is not None:
                self._refuse(request, message.error)
            else:
                self._add(request)
            return
        self.handled += 1
        if isinstance(message, Abort):
            if message.index is None:
                self._waiting.pop(message.request, None)
            self._engine.abort(message.request, message.index)
            return
        assert isinstance(message, Add)
        request = message.request
        if (work := self._engine.prepare(request)) is None:
            self._add(request)
        else:
            self._waiting[request.id] = request
            self._work.put((request, work))

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except RequestError as error:
            self._refuse(request, error)

    def _refuse(self, request: Request, error: Exception) -> None:
        if not isinstance(error, RequestError):
            raise error
        self._send(Refused(request.id, str(error)))

    def _prepare(self) -> None:
        while True:
            request, work = self._work.get()
            error = None
            # What nobody waits for any more is not worth the work.
            if self._waiting.get(request.id) is request:
                try:
                    work()
                except Exception as found:  # noqa: BLE001 - raised in the main thread
                    error = found
            self._inbox.put(_Prepared(request, error))


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
