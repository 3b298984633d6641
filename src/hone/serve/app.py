"""The application: routes, keys, and the frame in which every call is answered.

Whatever goes wrong inside a call becomes an answer in OpenAI's shape here, and nowhere else.
"""

import logging
import time
import traceback
from functools import partial
from pathlib import Path

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hone.serve.database import DatabasePane
from hone.serve.metrics import CONTENT_TYPE
from hone.serve.openai import models
from hone.serve.openai.chat import chat
from hone.serve.openai.completions import completions
from hone.serve.openai.embeddings import embeddings
from hone.serve.openai.errors import ApiError, as_api_error
from hone.serve.openai.http import Call, ClientGone, Headers, bearer
from hone.serve.openai.openapi import Endpoint, document
from hone.serve.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    QueryRequest,
    QuestionRequest,
    TokenizeRequest,
    read_body,
)
from hone.serve.openai.service import AppSettings, Client, Service
from hone.serve.panes import Panes
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer

__all__ = ["AppSettings", "create_app"]

_log = logging.getLogger("hone.serve")
_PAGE = Path(__file__).parent / "playground"
_PAGE_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_PAGE_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]

_JSON = [(b"content-type", b"application/json")]
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CLIENT_GONE = 499  # nginx's: nobody was there to be answered


def create_app(
    settings: AppSettings,
    client: Client,
    tokenizer: Tokenizer,
    conversations: Conversations,
    database: DatabasePane | None = None,
) -> Starlette:
    """The ASGI application that serves one model.

    Args:
        client: the engine; it may still be loading, and then calls are answered with 503.
        tokenizer: the model's.
        conversations: how the model writes conversations.
        database: what the database pane shows; None for none.
    """
    service = Service(settings, client, tokenizer, conversations)
    panes = Panes(database)
    info = partial(models.info, database=database is not None)
    endpoints = [
        Endpoint("POST", "/v1/chat/completions", chat, ChatRequest),
        Endpoint("POST", "/v1/completions", completions, CompletionRequest),
        Endpoint("POST", "/v1/embeddings", embeddings, EmbeddingRequest),
        Endpoint("GET", "/v1/models", models.models),
        Endpoint("GET", "/v1/models/{model}", models.model),
        Endpoint("POST", "/tokenize", models.tokenize, TokenizeRequest),
        Endpoint("POST", "/detokenize", models.detokenize, DetokenizeRequest),
        Endpoint("GET", "/metrics", _metrics),
        Endpoint("GET", "/health", models.health, open_to_all=True),
        Endpoint("GET", "/api/info", info),
        Endpoint("GET", "/api/database", panes.schema),
        Endpoint("POST", "/api/database/ask", panes.ask, QuestionRequest),
        Endpoint("POST", "/api/database/run", panes.run, QueryRequest),
    ]
    described = to_json(document(endpoints))
    endpoints += [
        Endpoint("GET", "/openapi.json", partial(_static, described, _JSON), open_to_all=True),
        *_page(),
    ]
    routes = [Route(item.route, _Frame(service, item)) for item in endpoints]
    middleware = []
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    app = Starlette(routes=routes, middleware=middleware)
    app.router.redirect_slashes = False
    app.router.default = _Frame(service, Endpoint("", "other", _unknown, open_to_all=True))
    return app


class _Frame:
    """One endpoint as an ASGI application that lets no error out."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service, self._endpoint = service, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        started, call = time.perf_counter(), Call(scope, receive, send)
        try:
            await self._answer(call)
        except ClientGone:
            call.status = call.status or _CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is answered
            await call.fail(as_api_error(error) or _unforeseen(call, error))
        endpoint = self._endpoint
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._service.metrics.answered(endpoint.path, method, call.status)
        seconds = time.perf_counter() - started
        _log.info(
            "%s %s %d %.3f s id=%s key=%s",
            method, endpoint.path, call.status, seconds, call.id, call.owner or "-",
        )  # fmt: skip

    async def _answer(self, call: Call) -> None:
        service, endpoint, method = self._service, self._endpoint, call.scope["method"]
        allowed = endpoint.methods
        if allowed and method not in allowed:
            message = f"This path takes {allowed[0]}, not {method:.20}."
            raise ApiError(405, message, None, "method_not_allowed", allow=", ".join(allowed))
        if not endpoint.open_to_all:
            call.owner = self._owner(call)
        if endpoint.schema is None:
            await endpoint.handler(service, call)
            return
        data = await call.body(service.bounds)
        if service.settings.log_content:
            call.logs_content = True
            _log.info("id=%s asks %r", call.id, data.decode("utf-8", "replace"))
        body = read_body(endpoint.schema, data)
        await call.work(endpoint.handler(service, call, body), service.bounds)

    def _owner(self, call: Call) -> str:
        key = bearer(call.headers)
        owner = self._service.settings.keys.owner(key)
        if owner is None:
            message = (
                "No API key was given; send it as `Authorization: Bearer KEY`."
                if key is None
                else "The API key is wrong."
            )
            raise ApiError(401, message, None, "invalid_api_key")
        return owner


def _unforeseen(call: Call, error: Exception) -> ApiError:
    """The answer to an error that nobody foresaw; the log has where, but nothing of a request."""
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("id=%s failed with %s at\n%s", call.id, type(error).__name__, where)
    return ApiError(
        500, f"The server failed at this request; its log has more under {call.id}.", None, "bug"
    )


async def _metrics(service: Service, call: Call) -> None:
    """What Prometheus collects."""
    await call.answer(service.metrics.text(), 200, [(b"content-type", CONTENT_TYPE.encode())])


async def _unknown(service: Service, call: Call) -> None:
    """Any other path."""
    raise ApiError(404, "There is nothing at this path.", None, "not_found")


async def _static(body: bytes, headers: Headers, service: Service, call: Call) -> None:
    await call.answer(body, 200, headers)


def _page() -> list[Endpoint]:
    """The playground: its files are read once."""
    found = []
    for file in sorted(_PAGE.glob("*")):
        kind = _PAGE_TYPES.get(file.suffix)
        if kind is None:
            continue
        path = "/" if file.name == "index.html" else f"/playground/{file.name}"
        headers = [(b"content-type", kind), *_PAGE_HEADERS]
        handler = partial(_static, file.read_bytes(), headers)
        found.append(Endpoint("GET", path, handler, open_to_all=True))
    return found
