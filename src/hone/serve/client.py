"""The engine as the HTTP process sees it: a process that is watched, and started again.

Everything here runs in one event loop, and nothing of it waits for the engine: what is sent is
buffered, and what a slow reader of one request leaves behind is merged for it.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from hone.core.errors import HoneError, RequestError
from hone.engine.request import Delta, EngineStats, Request
from hone.serve import wire
from hone.serve.info import ModelInfo
from hone.serve.wire import Abort, Add, Failed, Message, Ready, Refused, Settings, Step

State = Literal["loading", "ready", "failed", "stopping"]
_log = logging.getLogger("hone.serve")
_BUFFER = 1 << 20


class EngineGone(HoneError):  # noqa: N818 - as one would say it
    """The engine is not there, or went away in the middle of a request: HTTP status 503."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the engine's process is waited for, and how often it is started again.

    Attributes:
        hang: seconds without a sign of life of an engine that has work, after which it is killed.
        pause: seconds before the first new start; doubled for each death that follows.
        longest_pause: at most so long.
        settled: a process that lived for so many seconds after loading had a good start.
        quick_deaths: so many processes in a row may die before they are settled.
        ending: seconds for a process to end when it was told to; then it is killed.
    """

    hang: float = 300.0
    pause: float = 0.25
    longest_pause: float = 30.0
    settled: float = 60.0
    quick_deaths: int = 5
    ending: float = 2.0


class _Stream:
    """What arrived for a request and was not taken yet: at most one delta per output."""

    def __init__(self, request: Request) -> None:
        self._open = set(range(1 if request.embed else request.params.n))
        self._waiting: dict[int, Delta] = {}
        self._news = asyncio.Event()
        self._error: HoneError | None = None

    @property
    def complete(self) -> bool:
        """The last delta of each output has arrived."""
        return not self._open

    @property
    def taken(self) -> bool:
        """There is nothing more to take."""
        return self.complete and not self._waiting

    def push(self, delta: Delta) -> None:
        if delta.index not in self._open:
            return  # computed before the engine heard that nobody waits for it
        if delta.finish_reason is not None or delta.embedding is not None:
            self._open.discard(delta.index)
        before = self._waiting.get(delta.index)
        if before is None:
            self._waiting[delta.index] = delta
        else:
            before.tokens.extend(delta.tokens)
            before.logprobs.extend(delta.logprobs)
            before.finish_reason, before.error = delta.finish_reason, delta.error
            before.cached = max(before.cached, delta.cached)
        self._news.set()

    def end(self, index: int) -> bool:
        """Nobody waits for this output any more; False where it has ended."""
        if index not in self._open:
            return False
        self._open.discard(index)
        self._waiting.pop(index, None)
        self._news.set()
        return True

    def fail(self, error: HoneError) -> None:
        self._error = error
        self._news.set()

    async def take(self) -> list[Delta]:
        """What has arrived since; raises the error of the request behind it."""
        await self._news.wait()
        if self._error is None:
            self._news.clear()
        elif not self._waiting:
            raise self._error
        deltas, self._waiting = list(self._waiting.values()), {}
        return deltas


class EngineClient:
    """The engine's process. To be made and used in one event loop.

    Attributes:
        state: "loading" (also while it starts again), "ready", "failed" or "stopping".
        error: why it failed; "" unless it did.
        info: the model; None until it was loaded once.
        restarts: how often the process was started again.
        process: the id of the process; None while there is none.
    """

    def __init__(self, settings: Settings, patience: Patience | None = None) -> None:
        self._settings, self._patience = settings, patience or Patience()
        self.state: State = "loading"
        self.error = ""
        self.info: ModelInfo | None = None
        self.restarts = 0
        self.process: int | None = None
        self._stats: EngineStats | None = None
        self._streams: dict[str, _Stream] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # of the state, or of what is under way
        self._sent = 0
        self._due: float | None = None  # since when a sign of life is due
        self._settled_from: float | None = None

    def start(self) -> None:
        """Start the process, and from now on start it again when it dies."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise())

    async def ready(self) -> None:
        """Wait until requests are taken.

        Raises:
            EngineGone: the model cannot be loaded, or the server stops.
        """
        while self.state == "loading":
            await self._change()
        if self.state == "failed":
            raise EngineGone(self.error)
        if self.state == "stopping":
            raise _stopping()

    async def failed(self) -> str:
        """Wait until the engine is given up; returns the reason."""
        while self.state != "failed":
            await self._change()
        return self.error

    def stats(self) -> EngineStats | None:
        """How the engine stood a moment ago; None while there is none."""
        return self._stats

    @property
    def under_way(self) -> int:
        """How many requests are not answered yet."""
        return len(self._streams)

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Send a request, and yield what it brings until all its outputs have ended.

        The request is sent when the first delta is asked for. Closing the iterator
        (``contextlib.aclosing``) or cancelling whoever waits for it takes the request back at once.

        Raises:
            RequestError: the engine does not take this request.
            EngineGone: the engine is not there, or dies meanwhile.
        """
        if self.state != "ready":
            raise self._absent()
        if request.id in self._streams:
            raise RequestError(f"A request {request.id} is under way already; use another id.")
        stream = self._streams[request.id] = _Stream(request)
        self._send(Add(request))
        try:
            while not stream.taken:
                for delta in await stream.take():
                    yield delta
        finally:
            if self._streams.get(request.id) is stream:
                del self._streams[request.id]
                self._announce()
                if not stream.complete:
                    self._send(Abort(request.id))

    def end_output(self, request_id: str, index: int) -> None:
        """Take back one output of a request, e.g. because a stop string was met in it."""
        stream = self._streams.get(request_id)
        if stream is not None and stream.end(index):
            self._send(Abort(request_id, index))

    async def drain(self, seconds: float) -> None:
        """Take no more requests, wait up to ``seconds`` for those under way, then stop."""
        self._enter("stopping")
        try:
            async with asyncio.timeout(seconds):
                while self._streams:
                    await self._change()
        except TimeoutError:
            pass
        await self.stop()

    async def stop(self) -> None:
        """End the process at once; what is under way gets :class:`EngineGone`."""
        self._enter("stopping")
        self._give_up(_stopping())
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])

    async def _supervise(self) -> None:
        deaths, patience = 0, self._patience
        while True:
            self._settled_from = None
            try:
                reason, hopeless = await self._run()
            except Exception as error:  # noqa: BLE001 - a message that nobody foresaw is one more death
                reason, hopeless = f"It sent nonsense ({type(error).__name__}).", False
            if self.state == "stopping":
                return
            now = asyncio.get_running_loop().time()
            lived = 0.0 if self._settled_from is None else now - self._settled_from
            deaths = 1 if lived >= patience.settled else deaths + 1
            if hopeless or deaths > patience.quick_deaths:
                self.error = reason
                if not hopeless:
                    self.error = f"The engine died {deaths} times in a row, the last time: {reason}"
                _log.error("The engine is given up.")
                self._enter("failed")
                self._give_up(self._absent())
                return
            pause = min(patience.pause * 2.0 ** (deaths - 1), patience.longest_pause)
            _log.error("The engine died and is started again in %g s: %s", pause, reason)
            await asyncio.sleep(pause)
            self.restarts += 1

    async def _run(self) -> tuple[str, bool]:
        """One process from its start to its end: why it ended, and if another would too."""
        ours, theirs = socket.socketpair()
        try:
            process = await _spawn(theirs)
        except OSError as error:
            ours.close()
            return f"Its process cannot be started ({error.strerror}).", False
        self.process = process.pid
        self._sent, self._due = 0, None
        watch = asyncio.create_task(self._watch(process))
        last = None
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours, limit=_BUFFER)
            self._writer.write(wire.pack(self._settings))
            while not isinstance(last, Failed):
                last = await wire.read(reader)
                self._receive(last)
        except EOFError:
            pass
        finally:
            watch.cancel()
            if self._writer is None:
                ours.close()
            else:
                self._writer.transport.abort()  # not close(): that waits until all is sent
            self._writer, self._stats = None, None
            if self.state == "ready":
                self._enter("loading")
            self._give_up(EngineGone("The engine died in the middle of this request; try again."))
            code = await self._end(process)
            self.process = None
        if isinstance(last, Failed):
            return last.message, last.hopeless
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"Its process ended with {how}.", False

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Wait for a process that was told to end, and make sure that it does."""
        try:
            async with asyncio.timeout(self._patience.ending):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        loop, hang = asyncio.get_running_loop(), self._patience.hang
        while True:
            await asyncio.sleep(hang / 8)
            if self._due is not None and loop.time() - self._due > hang:
                _log.error("The engine gave no sign of life for %g s and is killed.", hang)
                process.kill()
                return

    def _receive(self, message: Message) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(message, Step):
            idle = not message.busy and message.handled == self._sent
            self._due = None if idle else now
            self._stats = message.stats or self._stats
            for delta in message.deltas:
                # One that was taken back is still computed for a step.
                if (stream := self._streams.get(delta.request)) is not None:
                    stream.push(delta)
        elif isinstance(message, Refused):
            if (refused := self._streams.pop(message.request, None)) is not None:
                refused.fail(RequestError(message.message))
                self._announce()
        elif isinstance(message, Ready):
            self.info, self._stats = message.info, message.stats
            self._settled_from = now
            if self.restarts:
                _log.info("The engine is ready again.")
            if self.state == "loading":
                self._enter("ready")

    def _send(self, message: Message) -> None:
        if self._writer is None:
            return
        self._sent += 1
        if self._due is None:
            self._due = asyncio.get_running_loop().time()
        self._writer.write(wire.pack(message))

    def _give_up(self, error: HoneError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        self._announce()

    def _absent(self) -> EngineGone:
        if self.state == "stopping":
            return _stopping()
        if self.state == "failed":
            return EngineGone(f"The engine failed: {self.error}")
        return EngineGone("The model is being loaded; try again in a moment.")

    def _enter(self, state: State) -> None:
        self.state = state
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _change(self) -> None:
        await self._changed.wait()


async def _spawn(connection: socket.socket) -> asyncio.subprocess.Process:
    """The engine's process, with its end of the connection, which is closed here."""
    with connection:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hone.serve.worker",
            str(connection.fileno()),
            pass_fds=(connection.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on the terminal is for us
        )


def _stopping() -> EngineGone:
    return EngineGone("The server is stopping and takes no more requests.")
