"""Requests that are wrong in every way that a generator thinks of: an answer, and never a 500."""

import asyncio
import json
import random
import string

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from scripted import make_app, scripted
from test_serve_app import Pane

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SHORT, WHOLE = 5, 200
# Where data are drawn within milliseconds; the others are for the slow test, and for the storm.
QUICK = ["/v1/models", "/v1/models/{model}", "/v1/embeddings", "/detokenize", "/health",
         "/metrics", "/api/info", "/api/database", "/api/database/run"]  # fmt: skip
CLIENT = scripted("네, {맑아요} <tool_call>\n", together=3)
APP = make_app(CLIENT, database=Pane())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


def _check(case):
    answer = case.call_and_validate(checks=CHECKS)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert list(answer.json()["error"]) == ["message", "type", "param", "code"]


# As much as a generator of a schema varies; all data are drawn the same on every run.
_QUIET = settings(
    max_examples=SHORT, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@SCHEMA.include(path=QUICK).parametrize()
@_QUIET
def test_what_the_description_allows_and_what_it_forbids(case):
    _check(case)


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(_QUIET, max_examples=WHOLE)
def test_the_description_at_length(case):
    """200 requests per path; python -m pytest -m slow tests/serve/test_fuzz.py (minutes)."""
    _check(case)


WHOLE_BODIES = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "짧게"},
            {"role": "user", "content": [{"type": "text", "text": "서울"}]},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "맑음"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "max_tokens": 5,
        "stop": ["a", "나"],
        "seed": 3,
        "logit_bias": {"5": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
        "chat_template_kwargs": {"a": [1]},
        "stop_token_ids": [4],
    },
    "/v1/completions": {
        "model": "sql",
        "prompt": ["서울", "부산"],
        "echo": True,
        "n": 2,
        "guided_choice": ["예"],
        "min_tokens": 1,
    },
    "/v1/embeddings": {"input": [[1, 2], [3]], "encoding_format": "base64"},
    "/tokenize": {"prompt": "서울", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/api/database/ask": {"question": "몇 명?"},
    "/api/database/run": {"sql": "SELECT 1"},
}  # fmt: skip
ODD = [
    None, True, False, 0, 1, -1, 2**31, -(2**63), 2**64, 10**400, 0.5, 1e308, -0.0, "", "a", "가",
    "\x00", "\ud800", "🌤️" * 50, [], {}, [[]], [None], {"": None}, {"type": "object"}, "a" * 5000,
]  # fmt: skip


def _odd(draw, depth=0):
    if depth < 3 and draw.random() < 0.3:
        kind = draw.choice([list, dict])
        items = [_odd(draw, depth + 1) for _ in range(draw.randint(0, 3))]
        return items if kind is list else {draw.choice(["a", "type", "가"]): v for v in items}
    return draw.choice(ODD)


def _mutated(value, draw):
    """``value`` with something else in one place of it, or in a few."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        made = dict(value)
        key = draw.choice(list(made))
        what = draw.random()
        if what < 0.15:
            del made[key]
        elif what < 0.25:
            made[draw.choice(["", "x", "audio", "functions", key + "s"])] = _odd(draw)
        else:
            made[key] = _mutated(made[key], draw)
        return made
    if isinstance(value, list) and value and draw.random() < 0.8:
        made = list(value)
        place = draw.randrange(len(made))
        made[place] = _mutated(made[place], draw)
        return made * draw.choice([1, 1, 1, 2, 20])
    return _odd(draw)


def _body(path, draw):
    body = WHOLE_BODIES[path]
    for _ in range(draw.randint(1, 3)):
        body = _mutated(body, draw)
    data = json.dumps(body, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    what = draw.random()
    if what < 0.1:
        return draw.randbytes(draw.randint(0, 200))
    if what < 0.3:  # bytes of it are lost, doubled or others
        at, size = draw.randrange(len(data)), draw.randint(0, 8)
        return (
            data[:at]
            + draw.choice([b"", data[at : at + size] * 3, draw.randbytes(size)])
            + (data[at + size :])
        )
    return data


def _headers(draw):
    choices = [
        (b"content-type", b"application/json"), (b"content-type", draw.randbytes(5)),
        (b"authorization", draw.randbytes(20)), (b"authorization", b"Bearer "),
        (b"x-request-id", draw.randbytes(9)), (b"content-length", b"-1"),
        (b"content-length", b"9" * 30), (b"accept-encoding", b"\xff"), (b"origin", b"null"),
    ]  # fmt: skip
    return draw.sample(choices, draw.randint(0, 3))


async def _ask(draw):
    """One odd request straight to the application: its status and its body."""
    path = draw.choice(list(WHOLE_BODIES))
    data, method = _body(path, draw), "POST"
    if draw.random() < 0.1:
        signs = string.printable + "가%/.."
        path = "/" + "".join(draw.choice(signs) for _ in range(draw.randint(0, 20)))
        method = draw.choice(["GET", "POST", "HEAD", "BREW", "OPTIONS"])
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "root_path": "",
        "raw_path": path.encode(), "query_string": draw.randbytes(3), "headers": _headers(draw),
        "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    cut = draw.randint(0, len(data))
    messages = [
        {"type": "http.request", "body": data[:cut], "more_body": True},
        {"type": "http.request", "body": data[cut:], "more_body": False},
    ]
    if draw.random() < 0.05:
        messages[draw.randint(0, 1) :] = [{"type": "http.disconnect"}]
    status, body = 0, b""

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message):
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    await asyncio.wait_for(APP(scope, receive, send), 20)
    return status, body, data


def _storm(count, seed):
    async def main():
        draw, seen = random.Random(seed), {}
        for _ in range(count):
            status, body, data = await _ask(draw)
            assert status != 500, data
            assert not body.endswith(b"}\n\n"), data  # a stream without its [DONE]
            if status >= 400:
                error = json.loads(body)["error"]
                assert list(error) == ["message", "type", "param", "code"]
                assert error["message"], data
            seen[status] = seen.get(status, 0) + 1
        return seen

    seen = asyncio.run(main())
    assert CLIENT.running == 0
    return seen


def test_random_bodies_and_bytes_never_reach_the_last_resort():
    seen = _storm(600, seed=1)
    assert {200, 400, 404} <= set(seen)
    assert seen[400] > 100


@pytest.mark.slow
def test_ten_thousand_random_requests():
    """10,000 of them; python -m pytest -m slow tests/serve/test_fuzz.py (about 1 minute)."""
    seen = _storm(10_000, seed=2)
    print(seen)
    assert set(seen) <= {0, 200, 400, 404, 405, 413}
