"""A server of a checkpoint, its engine in a process of its own."""

import asyncio
import contextlib
import os
import socket
import threading

import uvicorn

from hone.engine.options import EngineOptions
from hone.serve.app import AppSettings, create_app
from hone.serve.client import EngineClient
from hone.serve.wire import Settings
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer


class Server(threading.Thread):
    """The application and its engine, in an event loop of its own."""

    def __init__(self, checkpoint):
        super().__init__(daemon=True)
        self._checkpoint = checkpoint
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.ready = threading.Event()
        self.error = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self):
        asyncio.run(self._main())

    async def _main(self):
        options = EngineOptions(max_running=8, block_size=8, cache_bytes=4_000_000)
        arguments = {
            "model": str(self._checkpoint),
            "name": "tiny",
            "options": options,
            "exact": False,
        }
        tokenizer = Tokenizer.load(self._checkpoint)
        self.client = EngineClient(Settings(arguments=arguments, threads=1))
        app = create_app(AppSettings(), self.client, tokenizer, Conversations(tokenizer))
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
        self.server = uvicorn.Server(config)
        self.server.capture_signals = contextlib.nullcontext
        self.client.start()
        try:
            await self.client.ready()
        except Exception as error:
            self.error = error
            raise
        finally:
            self.ready.set()
        await self.server.serve(sockets=[self.listener])
        await self.client.stop()


@contextlib.contextmanager
def running(checkpoint):
    """A server that is ready; "tiny" is its model."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    server = Server(checkpoint)
    server.start()
    assert server.ready.wait(60)
    assert server.error is None, server.error
    yield server
    server.server.should_exit = server.server.force_exit = True
    server.join(10)
