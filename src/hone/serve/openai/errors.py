"""Errors in the one shape that OpenAI's clients read: a status and ``{"error": {...}}``."""

from collections.abc import Sequence
from dataclasses import fields
from reprlib import repr as short
from typing import Any

from pydantic import ValidationError

from hone.core.errors import CapacityError, HoneError, RequestError
from hone.engine.params import SamplingParams
from hone.serve.client import EngineGone
from hone.serve.limits import Refusal

# Errors of these fields begin with the name of the field.
_PARAMETERS = frozenset(field.name for field in fields(SamplingParams))


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: one sentence for people.
        param: the field of the request that is at fault, e.g. ``messages[0].content``.
        code: a short name of the reason, for programs.
        retry_after: seconds after which to try again; None where that would not help.
        allow: the methods of a path, of a 405.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.allow = retry_after, allow

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, in an answer of its own or in a stream."""
        return {
            "error": {
                "message": self.message,
                "type": _kind(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that belong to it."""
        found = []
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        elif self.status in (408, 500):
            # OpenAI's clients repeat these by themselves, which would take as long again.
            found.append((b"x-should-retry", b"false"))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        return found


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def as_api_error(error: Exception) -> ApiError | None:
    """``error`` as an answer; None for one that nobody raised on purpose."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refusal):
        return ApiError(error.status, str(error), None, error.code, error.retry_after)
    if isinstance(error, EngineGone | CapacityError):
        return ApiError(503, str(error), None, "engine_unavailable", 1)
    if isinstance(error, RequestError):
        name = str(error).partition(" ")[0]
        return ApiError(400, str(error), name if name in _PARAMETERS else None, "invalid_value")
    if isinstance(error, HoneError):
        return ApiError(400, str(error))
    return None


def unsupported(param: str, instead: str) -> ApiError:
    """A field that would change the result, and is not supported."""
    return ApiError(400, f"{param} is not supported; {instead}.", param, "unsupported_parameter")


def from_validation(error: ValidationError, data: Any) -> ApiError:
    """The first thing that is wrong with the body ``data``."""
    # Where a field may be one of several kinds there is one error for each; the one that reached
    # deepest into the body is about the kind that was meant.
    found = max(error.errors(include_url=False), key=lambda item: len(_path(item["loc"], data)))
    path = _path(found["loc"], data)
    param = path_text(path)
    reason = found["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ").rstrip(".")
    if found["type"] == "missing":
        param = path_text([*path, str(found["loc"][-1])])
        return ApiError(400, f"{param} is missing.", param, "missing_required_parameter")
    if found["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {reason}.", None, "invalid_json")
    shown = "an object" if isinstance(found["input"], dict) else f"{short(found['input']):.80}"
    message = f"{param or 'The body'} is {shown}: {reason}."
    return ApiError(400, message, param or None, "invalid_value")


def _path(loc: Sequence[str | int], data: Any) -> list[str | int]:
    """The part of ``loc`` that is in ``data``: kinds of fields stand between their names."""
    path: list[str | int] = []
    for step in loc:
        try:
            data = data[step]
        except (LookupError, TypeError):
            continue
        path.append(step)
    return path


def path_text(path: Sequence[str | int]) -> str:
    """``messages[0].content``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
