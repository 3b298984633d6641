"""An engine in this process that says what a test wrote down, and a server around it."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from chat_zoo import make_chat_tokenizer

from hone.core.errors import RequestError
from hone.engine.request import Delta, EngineStats, TokenLogprobs
from hone.serve.app import AppSettings, create_app
from hone.serve.client import EngineGone
from hone.serve.connections import Connection
from hone.serve.info import ModelInfo
from hone.text.conversation import Conversations

ANSWER = "네, 서울은 맑아요. 🌤️ It's 23 degrees — enjoy!"


@dataclass
class ScriptedClient:
    """As :class:`hone.serve.client.EngineClient`, but its outputs are ``answer``.

    ``answer`` is a text, token ids, an error, or a function of the request and the output's index.
    ``together`` tokens come at once; ``dies_after`` so many the engine is gone. Where it
    is ``stuck``, outputs end so.
    """

    tokenizer: object
    answer: object = ANSWER
    delay: float = 0.0
    together: int = 1
    dies_after: int | None = None
    stuck: str = ""
    vector: object = None
    info: ModelInfo | None = None
    state: str = "ready"
    error: str = ""
    requests: list = field(default_factory=list)
    taken_back: list = field(default_factory=list)
    ended: list = field(default_factory=list)
    running: int = 0

    def __post_init__(self):
        self.info = self.info or ModelInfo(
            name="tiny",
            context=512,
            longest_prompt=511,
            vocabulary=len(self.tokenizer),
            end_ids=(self.tokenizer.eos_id,),
            adapters=("sql",),
            embeds=True,
            created=1700000000,
        )

    def stats(self):
        return EngineStats(running=self.running, blocks=100, free_blocks=75, prefix_hits=3)

    def end_output(self, request_id, index):
        self.ended.append((request_id, index))

    async def generate(self, request):
        if self.state != "ready":
            raise EngineGone("The engine is not there.")
        self.requests.append(request)
        self.running += 1
        whole = False
        try:
            if isinstance(self.answer, Exception):
                raise self.answer
            if request.embed:
                whole = True
                vector = [3.0, 4.0, float(len(request.prompt))]
                yield Delta(request.id, embedding=self.vector(request) if self.vector else vector)
                return
            plans = [self._plan(request, index) for index in range(request.params.n)]
            sent = 0
            while any(plans):
                await asyncio.sleep(self.delay)
                for index, plan in enumerate(plans):
                    if not plan or (request.id, index) in self.ended:
                        plans[index] = []
                        continue
                    if self.dies_after is not None and sent >= self.dies_after:
                        raise EngineGone("The engine died in the middle of this request.")
                    sent += 1
                    now, plans[index] = plan[: self.together], plan[self.together :]
                    whole = not any(plans)
                    delta = self._delta(request, index, now, not plans[index])
                    if self.stuck and not plans[index]:
                        delta.tokens, delta.logprobs = [], []
                        delta.finish_reason, delta.error = "error", self.stuck
                    yield delta
        finally:
            self.running -= 1
            if not whole:
                self.taken_back.append(request.id)

    def _plan(self, request, index):
        answer = self.answer(request, index) if callable(self.answer) else self.answer
        ids = list(answer) if isinstance(answer, list) else self.tokenizer.encode(answer)
        if not request.params.ignore_eos:
            ids.append(self.tokenizer.eos_id)
        most = request.params.max_tokens
        return ids if most is None else ids[:most]

    def _delta(self, request, index, tokens, last):
        reason = None
        if last:
            reason = "stop" if tokens[-1] == self.tokenizer.eos_id else "length"
        logprobs = []
        if (top := request.params.logprobs) is not None:
            logprobs = [
                TokenLogprobs(
                    token, -0.5, tuple(((token + at) % 300, -0.5 - at) for at in range(top))
                )
                for token in tokens
            ]
        return Delta(request.id, index, tokens, logprobs, reason, cached=2)


def scripted(answer=ANSWER, zoo="qwen", template=None, **kwargs):
    tokenizer = make_chat_tokenizer(zoo)
    if template is not None:
        tokenizer.chat_templates = {"default": template}
    return ScriptedClient(tokenizer, answer, **kwargs)


def make_app(client, settings=None, database=None):
    return create_app(
        settings or AppSettings(),
        client,
        client.tokenizer,
        Conversations(client.tokenizer),
        database,
    )


def refusal(message="This prompt is refused; send another."):
    return RequestError(message)


@contextlib.contextmanager
def serving(app):
    """The address of a server of ``app`` in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=Connection, log_config=None, access_log=False, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    host, port = listener.getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(5)
        listener.close()


def until(condition, seconds=5.0):
    """Wait until something is so; fails where it does not become so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.002)
