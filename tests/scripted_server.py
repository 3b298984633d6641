"""A server that speaks OpenAI's protocol as it is told to, and badly where it is told to."""

import asyncio
import json
import threading
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PIECES = ("안녕", "하", "세요", " 🙂", " hello")


def error(status, message, **headers):
    body = {"error": {"message": message, "type": "some", "param": None, "code": None}}
    return JSONResponse(body, status, headers)


class Script:
    """What the server does.

    Attributes:
        behave: called with (number of the request, its body); returns a name below, or a Response.
        gap: seconds between pieces.
        seen: the bodies and headers of all requests.
    """

    def __init__(self, behave=lambda number, body: "good", gap=0.001, usage=True, key=None):
        self.behave, self.gap, self.usage, self.key = behave, gap, usage, key
        self.seen, self.headers = [], []
        self.left = 0  # streams that a client closed early
        self.running = self.most = 0

    def app(self):
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
            ]
        )

    async def models(self, request):
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "wrong key")
        entry = {"id": "scripted", "object": "model", "created": 1, "owned_by": "test"}
        return JSONResponse({"object": "list", "data": [entry | {"max_model_len": 100}]})

    async def answer(self, request):
        body = await request.json()
        chat = "chat" in request.url.path
        self.seen.append(body)
        self.headers.append(dict(request.headers))
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        length = len(prompt) if isinstance(prompt, list) else 2 * len(prompt.split()) + 3
        usage = {"prompt_tokens": length, "completion_tokens": body["max_tokens"]}
        if not body.get("stream"):
            text = "".join(piece(i) for i in range(body["max_tokens"]))
            found = {"message": {"content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "length"} | found
            return JSONResponse({"choices": [choice]} | ({"usage": usage} if self.usage else {}))
        if "stream_options" in body and not self.usage:
            return error(400, "stream_options is not known")
        behaviour = self.behave(len(self.seen), body)
        if isinstance(behaviour, Response):
            return behaviour
        return StreamingResponse(
            self.stream(body, chat, behaviour, usage), media_type="text/event-stream"
        )

    async def stream(self, body, chat, behaviour, usage):
        self.running += 1
        self.most = max(self.most, self.running)
        name, done = f"id-{len(self.seen)}", False

        def event(text, reason=None, **other):
            part = {"delta": {"content": text}} if chat else {"text": text}
            choices = [{"index": 0, "finish_reason": reason} | part]
            return f"data: {json.dumps({'id': name, 'choices': choices} | other)}\n\n"

        try:
            if chat:
                yield event("")
            count = body["max_tokens"]
            for index in range(count):
                if behaviour == "cut" and index == 2:
                    return
                if behaviour == "error" and index == 2:
                    yield 'data: {"error": {"message": "the engine is gone"}}\n\n'
                    return
                if behaviour == "mixed" and index == 2:
                    name = "another"
                yield ": still here\n\n" + event(piece(index))
                await asyncio.sleep(60 if behaviour == "hang" and index == 1 else self.gap)
            if behaviour != "no reason":
                yield event("", "length")
            if behaviour == "late text":
                yield event("more")
            if "stream_options" in body:
                yield f"data: {json.dumps({'id': name, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.running -= 1
            self.left += not done


def piece(index):
    return PIECES[index % len(PIECES)]


@contextmanager
def serving(script):
    """The URL of ``script`` on a free port."""
    import uvicorn

    config = uvicorn.Config(script.app(), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
