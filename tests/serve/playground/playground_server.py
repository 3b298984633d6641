"""A server whose answers are scripted, to try the playground's page without a model."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import hone.serve

READY = '#state[data-state="ready"]'
ANSWER = ".message.assistant:last-child .answer"
Open = Callable[..., Any]  # the fixture `visit`

PAGE = Path(hone.serve.__file__).parent / "playground"
# What the comment at the top of api.js asks of a server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

SCHEMA: dict[str, Any] = {
    "name": "shop.sqlite",
    "tables": [
        {
            "name": "store",
            "is_view": False,
            "rows": 12,
            "labels": {"en": ["store"], "ko": ["매장"]},
            "columns": [
                {"name": "id", "type": "INTEGER", "kind": "integer", "nullable": False,
                 "primary": True, "labels": {"en": [], "ko": []}, "samples": [1, 2]},
                {"name": "city", "type": "TEXT", "kind": "text", "nullable": True,
                 "primary": False, "labels": {"en": ["city"], "ko": ["도시"]},
                 "samples": ["서울", "부산"]},
            ],
        },
        {
            "name": "sale",
            "is_view": False,
            "rows": 48211,
            "labels": {"en": ["sale"], "ko": ["판매"]},
            "columns": [
                {"name": "id", "type": "INTEGER", "kind": "integer", "nullable": False,
                 "primary": True, "labels": {"en": [], "ko": []}, "samples": []},
                {"name": "store_id", "type": "INTEGER", "kind": "integer", "nullable": False,
                 "primary": False, "labels": {"en": ["store"], "ko": ["매장 번호"]}, "samples": []},
                {"name": "amount", "type": "REAL", "kind": "real", "nullable": True,
                 "primary": False, "labels": {"en": ["amount"], "ko": ["금액"]},
                 "samples": [1200.5]},
                {"name": "sold_on", "type": "TEXT", "kind": "date", "nullable": True,
                 "primary": False, "labels": {"en": ["date"], "ko": ["판매일"]},
                 "samples": ["2026-01-02"]},
            ],
        },
    ],
    "foreign_keys": [
        {"table": "sale", "columns": ["store_id"], "ref_table": "store", "ref_columns": ["id"],
         "inferred": False}
    ],
    "notes": [],
    "questions": ["도시별 매출 합계는?", "Which store sold the most?"],
}  # fmt: skip
ROWS: dict[str, Any] = {
    "sql": "SELECT city, SUM(amount) AS 매출\nFROM store JOIN sale ON sale.store_id = store.id\n"
    "WHERE city <> '제주' -- 섬은 빼고\nGROUP BY city ORDER BY 2 DESC LIMIT 3",
    "columns": ["city", "매출"],
    "rows": [["서울", 1234567.5], ["부산", 890123], [None, 12]],
    "truncated": False,
    "error": None,
    "seconds": 0.0042,
}


@dataclass
class Script:
    """What the server will answer, and what it was asked."""

    pieces: list[bytes] = field(default_factory=lambda: [b"Hello", b" there", b"!"])
    logprobs: list[float] = field(default_factory=list)
    pause: float = 0.0
    fault: str | None = None  # "429", "broken", "error", "400"
    state: str = "ready"
    key: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    models: list[str] = field(default_factory=lambda: ["tiny"])
    result: dict[str, Any] = field(default_factory=lambda: dict(ROWS))
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cut_off: int = 0  # streams that the page left

    def reset(self) -> None:
        self.__dict__.update(Script().__dict__)


def _top(piece: bytes, logprob: float) -> list[tuple[bytes, float]]:
    others = [(b" nothing", -3.0), ("안".encode(), -4.0), (b"\n", -5.0), (b"\xeb\x9d", -6.5)]
    return sorted([(piece, logprob), *others], key=lambda pair: -pair[1])


def _as_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


def _named(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _chunk(script: Script, i: int, text: str, kind: str, logprobs: bool) -> dict[str, Any]:
    piece = script.pieces[i]
    logprob = script.logprobs[i] if i < len(script.logprobs) else math.log(0.9)
    choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": None}
    if kind == "chat":
        choice["delta"] = {"content": text}
        if logprobs:
            top = [_as_token(*pair) for pair in _top(piece, logprob)]
            choice["logprobs"] = {"content": [_as_token(piece, logprob) | {"top_logprobs": top}]}
    else:
        choice["text"] = text
        if logprobs:
            top = {_named(other): p for other, p in _top(piece, logprob)}
            choice["logprobs"] = {
                "tokens": [_named(piece)],
                "token_logprobs": [logprob],
                "top_logprobs": [top],
                "text_offset": [0],
            }
    return {"choices": [choice]}


async def _stream(script: Script, kind: str, logprobs: bool) -> AsyncIterator[str]:
    def line(event: dict[str, Any]) -> str:
        return f"data: {json.dumps(event)}\n\n"

    finished = False
    try:
        if kind == "chat":
            yield line({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        done = b""
        for i, piece in enumerate(script.pieces):
            await asyncio.sleep(script.pause)
            if i == 2 and script.fault == "broken":
                return
            if i == 2 and script.fault == "error":
                yield line({"error": {"message": "The engine stopped; it is being restarted."}})
                return
            whole = (done + piece).decode("utf-8", "ignore")
            text = whole[len(done.decode("utf-8", "ignore")) :]
            done += piece
            yield line(_chunk(script, i, text, kind, logprobs))
        yield line({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(script.pieces)}
        yield line({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
        finished = True
    finally:
        if not finished and script.fault is None:
            script.cut_off += 1


async def _query(script: Script) -> AsyncIterator[str]:
    for word in script.result["sql"].split(" "):
        await asyncio.sleep(script.pause)
        yield f"data: {json.dumps({'delta': word + ' '})}\n\n"
    yield f"data: {json.dumps(script.result)}\n\ndata: [DONE]\n\n"


def _error(message: str, status: int, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status, headers=headers)


def _app(script: Script) -> Starlette:
    async def page(request: Request) -> Response:
        path = PAGE / request.path_params.get("name", "index.html")
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return FileResponse(path, headers=headers, media_type=TYPES[path.suffix])

    async def health(_: Request) -> Response:
        return JSONResponse({"state": script.state}, 200 if script.state == "ready" else 503)

    async def guarded(request: Request) -> Response:
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            return _error("Give an API key.", 401)
        if script.state != "ready":
            return _error("The model is being loaded.", 503)
        path = request.url.path
        if path == "/v1/models":
            return JSONResponse({"object": "list", "data": [{"id": m} for m in script.models]})
        if path == "/api/info":
            about = {"name": "tiny", "version": "0.1.0", "context": 2048, "chat": True,
                     "generates": True, "embeds": True, "database": False,
                     "adapters": []}  # fmt: skip
            return JSONResponse(about | script.info)
        if path == "/api/database":
            return JSONResponse(SCHEMA)
        body = await request.json()
        script.asked.append((path, body))
        if script.fault == "429":
            return _error("Too many requests wait already.", 429, **{"retry-after": "2"})
        if script.fault == "400":
            return _error("temperature is 9.0; give a number of at most 2.", 400)
        if path == "/api/database/run":
            return JSONResponse(script.result | {"sql": body["sql"]})
        if path == "/api/database/ask":
            events = _query(script)
            return StreamingResponse(events, media_type="text/event-stream")
        kind = "chat" if path == "/v1/chat/completions" else "completion"
        stream = _stream(script, kind, "logprobs" in body)
        return StreamingResponse(stream, media_type="text/event-stream")

    gets = ["/v1/models", "/api/info", "/api/database"]
    posts = ["/v1/chat/completions", "/v1/completions", "/api/database/ask", "/api/database/run"]
    return Starlette(
        routes=[
            Route("/", page),
            Route("/playground/{name}", page),
            Route("/health", health),
            *(Route(path, guarded) for path in gets),
            *(Route(path, guarded, methods=["POST"]) for path in posts),
        ]
    )


@contextmanager
def scripted_server() -> Iterator[tuple[str, Script]]:
    """Gives its address and its script."""
    script = Script()
    with running(_app(script)) as address:
        yield address, script


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a server of ``app``, in a thread."""
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(5)


def say(page: Any, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def finish(page: Any, usage: bool = True) -> str:
    """Wait for the last answer's end, and give its text."""
    page.wait_for_selector(f"{ANSWER}:not(.writing)", state="attached")
    if usage:
        page.wait_for_selector(".message.assistant:last-child .facts >> text=/7 \\+/")
    return page.text_content(ANSWER)


def bodies(script: Script) -> list[dict[str, Any]]:
    return [body for _, body in script.asked]
