"""The endpoints as data, and the OpenAPI document that describes them."""

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic.json_schema import models_json_schema

from hone.serve.openai.schemas import Body

Handler = Callable[..., Coroutine[Any, Any, None]]

_REFERENCE = "#/components/schemas/"
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The key is missing or wrong.",
    404: "There is no such model or path.",
    405: "The path takes another method.",
    408: "The body or the answer took too long.",
    413: "The body is too large.",
    429: "Too many requests; Retry-After says when to try again.",
    500: "The model cannot go on: its weights are damaged, or the server has a bug.",
    503: "The model is being loaded, or the server is stopping.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the server.

    Attributes:
        method: of HTTP; "" takes any.
        path: with its parameters in braces.
        handler: called with the service, the call and the body where there is a schema.
        schema: of the body; None where none is read.
        open_to_all: no key is asked for.
    """

    method: str
    path: str
    handler: Handler
    schema: type[Body] | None = None
    open_to_all: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it takes; none for any."""
        return {"": (), "GET": ("GET", "HEAD")}.get(self.method, (self.method,))

    @property
    def route(self) -> str:
        """The path as Starlette reads it: a model's name may have slashes."""
        return self.path.replace("{model}", "{model:path}")


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of ``endpoints``."""
    kinds = [endpoint.schema for endpoint in endpoints if endpoint.schema is not None]
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_REFERENCE + "{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "hone", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}) | {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    handler = endpoint.handler
    while isinstance(handler, partial):
        handler = handler.func
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": _content(endpoint)}}
    for status, why in _ERRORS.items():
        error = {"application/json": {"schema": {"$ref": f"{_REFERENCE}Error"}}}
        answers[str(status)] = {"description": why, "content": error}
    made: dict[str, Any] = {"summary": inspect.getdoc(handler) or "", "responses": answers}
    if not endpoint.open_to_all:
        made["security"] = [{"key": []}]
    if endpoint.schema is not None:
        body = {"schema": {"$ref": f"{_REFERENCE}{endpoint.schema.__name__}"}}
        made["requestBody"] = {"required": True, "content": {"application/json": body}}
    if "{model}" in endpoint.path:
        made["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return made


def _content(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    made: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if endpoint.schema is not None and "stream" in endpoint.schema.model_fields:
        made["text/event-stream"] = {"schema": {"type": "string"}}
    return made
