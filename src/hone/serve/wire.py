"""What the HTTP process and the engine's process tell each other, over a pair of sockets.

A message is a pickled object behind its length. Both ends are ours: nothing that came from a
client is ever unpickled, only objects that hold it.
"""

import asyncio
import pickle
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from hone.engine.request import Delta, EngineStats, Request
from hone.serve.info import ModelInfo

_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the engine's process is to run.

    Attributes:
        factory: "module:function" that loads the model; it returns a
            :class:`hone.serve.worker.Engine` and its :class:`ModelInfo`.
        arguments: what the function is called with.
        threads: of the computation; None leaves the choice to torch.
    """

    factory: str = "hone.serve.loading:load_engine"
    arguments: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """To the engine: a new request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """To the engine: nobody waits for this request any more, or for this one of its outputs."""

    request: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """From the engine: the model is loaded."""

    info: ModelInfo
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Failed:
    """From the engine, its last message: it cannot go on; ``hopeless`` if a restart won't help."""

    message: str
    hopeless: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """From the engine: a request that it does not take."""

    request: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """From the engine: what a step brought.

    Attributes:
        handled: messages that the engine has taken from the HTTP process so far.
        busy: there is more to compute.
        stats: None where they were sent a moment ago.
    """

    deltas: list[Delta]
    handled: int
    busy: bool
    stats: EngineStats | None


Message = Add | Abort | Ready | Failed | Refused | Step | Settings


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def receive(connection: socket.socket) -> Any:
    """The next message; raises :class:`EOFError` when the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return pickle.loads(_exactly(connection, length))


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message; raises :class:`EOFError` when the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except OSError as error:
        raise EOFError from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(size - len(parts))
        except OSError as error:
            raise EOFError from error
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
