"""The frame of every call: keys, limits, errors, logs, the page, the database pane."""

import json
import logging
import sqlite3
import subprocess
import sys

import openai
import pytest
from scripted import ANSWER, make_app, scripted, serving
from starlette.testclient import TestClient

from hone.core.errors import RequestError
from hone.engine.params import Grammar
from hone.serve.app import AppSettings
from hone.serve.database import Question
from hone.serve.keys import KeyRing
from hone.serve.limits import Bounds
from hone.serve.openai.service import sampling_defaults

CHAT = {"messages": [{"role": "user", "content": "비밀이에요"}]}
PROTECTED = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", "/tokenize"),
    ("POST", "/detokenize"), ("GET", "/metrics"), ("GET", "/api/info"), ("GET", "/api/database"),
    ("POST", "/api/database/ask"), ("POST", "/api/database/run"),
]  # fmt: skip


def http(settings=None, database=None, **kwargs):
    client = scripted(**kwargs)
    return client, TestClient(make_app(client, settings, database))


def shaped(answer):
    """The error of an answer, after a look at its shape."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"].endswith((".", "?"))
    return error


@pytest.mark.smoke
def test_keys_are_asked_for_everywhere_but_at_health_and_the_page():
    settings = AppSettings(keys=KeyRing([("alice", "sk-one"), (None, "sk-two")]))
    client, api = http(settings)
    for method, path in PROTECTED:
        for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"authorization": "sk-one"}):
            answer = api.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert shaped(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert api.get("/health").status_code == 200
    assert api.get("/").status_code == 200
    assert api.get("/openapi.json").status_code == 200
    headers = {"authorization": "bearer sk-one"}
    assert api.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    assert client.requests[-1].owner == "alice"


def test_a_wrong_key_is_the_clients_own_error():
    client = scripted()
    settings = AppSettings(keys=KeyRing([(None, "sk-one")]))
    with (
        serving(make_app(client, settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-two") as api,
    ):
        with pytest.raises(openai.AuthenticationError):
            api.models.list()
        api.api_key = "sk-one"
        assert [model.id for model in api.models.list()] == ["tiny", "sql"]


@pytest.mark.parametrize("state", ["loading", "failed", "stopping"])
def test_nothing_is_served_while_the_engine_is_not_there(state):
    _, api = http(state=state, error="its process ended." if state == "failed" else "")
    health = api.get("/health")
    assert health.status_code == 503
    assert health.json()["state"] == state
    if state == "failed":
        assert health.json()["message"] == "its process ended."
    for method, path in PROTECTED:
        if path in ("/metrics", "/api/database", "/api/database/ask", "/api/database/run"):
            continue
        body = {"messages": CHAT["messages"], "prompt": "a", "input": "a", "tokens": [1]}
        body = {"prompt": "a"} if path == "/tokenize" else body
        answer = api.request(method, path, json=body)
        assert answer.status_code == 503, path
        shaped(answer)
        assert ("retry-after" in answer.headers) == (state != "failed")
    assert api.get("/metrics").status_code == 200


def test_health_says_ready():
    _, api = http()
    assert api.get("/health").json() == {"state": "ready"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"3", b'{"messages": }', b"\xff\xfe", b'{"messages": "\\ud800"}',
     b"[" * 100_000, b'{"a":' * 10_000, b'{"messages": NaN}', b"\x00" * 100],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_a_body_that_is_no_json_object_is_a_400(path, body):
    _, api = http()
    answer = api.post(path, content=body)
    assert answer.status_code == 400
    shaped(answer)


def test_unknown_paths_and_methods_have_the_same_shape():
    _, api = http()
    for path in ("/v2", "/v1/chat", "/v1/models/", "/v1/chat/completions/", "/playground/no.js"):
        answer = api.get(path)
        assert answer.status_code == 404, path
        shaped(answer)
    for method, path, allowed in [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/health", "GET, HEAD"),
        ("PATCH", "/", "GET, HEAD"),
        ("OPTIONS", "/v1/completions", "POST"),
    ]:
        answer = api.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        shaped(answer)
    assert api.head("/health").status_code == 200


def test_a_body_that_is_too_large_is_a_413():
    _, api = http(AppSettings(bounds=Bounds(body_bytes=1000)))
    answer = api.post("/v1/completions", json={"prompt": "가" * 1000})
    assert answer.status_code == 413
    shaped(answer)

    def parts():
        for _ in range(100):
            yield b" " * 100

    assert api.post("/v1/completions", content=parts()).status_code == 413


def test_a_full_server_says_when_to_try_again():
    client = scripted(delay=0.02)
    settings = AppSettings(bounds=Bounds(requests=1))
    with (
        serving(make_app(client, settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="a", max_retries=0) as api,
    ):
        ask = {"model": "tiny", **CHAT}
        stream = api.chat.completions.create(**ask, stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError) as caught:
            api.chat.completions.create(**ask)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.type == "rate_limit_error"
        # A client with patience gets its answer by itself.
        patient = api.with_options(max_retries=3)
        assert patient.chat.completions.create(**ask).choices[0].message.content == ANSWER
        stream.close()


def test_rates_are_kept_per_key():
    keys = KeyRing([("a", "k1"), ("b", "k2")])
    _, api = http(AppSettings(keys=keys, bounds=Bounds(requests_per_minute=2)))
    first, second = {"authorization": "Bearer k1"}, {"authorization": "Bearer k2"}
    for headers, status in [(first, 200), (first, 200), (first, 429), (second, 200)]:
        answer = api.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == status
    answer = api.post("/v1/chat/completions", json=CHAT, headers=first)
    assert 1 <= int(answer.headers["retry-after"]) <= 30


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_a_408(stream):
    client, api = http(AppSettings(bounds=Bounds(seconds=0.05)), delay=0.3)
    answer = api.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert answer.status_code == 408
    assert shaped(answer)["code"] == "request_timeout"
    assert answer.headers["x-should-retry"] == "false"
    assert client.running == 0
    assert client.taken_back


def test_a_stream_that_takes_too_long_ends_with_an_error_and_done():
    client, api = http(AppSettings(bounds=Bounds(seconds=0.1)), delay=0.02)
    answer = api.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert answer.status_code == 200
    events = answer.text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert json.loads(events[-3][6:])["error"]["code"] == "request_timeout"
    assert client.running == 0


def test_request_ids_go_back():
    _, api = http()
    answer = api.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    ids = {api.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    answer = api.get("/nothing", headers={"x-request-id": "a b\x7f"})
    assert answer.headers["x-request-id"] != "a b\x7f"


def test_other_pages_may_ask_only_where_they_are_allowed():
    _, api = http()
    origin = {"origin": "https://example.com"}
    answer = api.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert "access-control-allow-origin" not in answer.headers
    _, api = http(AppSettings(cors_origins=("https://example.com",)))
    answer = api.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://example.com"
    other = {"origin": "https://evil.example"}
    assert "access-control-allow-origin" not in api.get("/health", headers=other).headers
    asked = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    assert api.options("/v1/chat/completions", headers=asked).status_code == 200


@pytest.mark.parametrize("content", [False, True])
def test_the_log_has_no_content_unless_asked(caplog, content):
    caplog.set_level(logging.DEBUG)
    settings = AppSettings(keys=KeyRing([("alice", "sk-one")]), log_content=content)
    _, api = http(settings)
    headers = {"authorization": "Bearer sk-one"}
    for stream in (False, True):
        body = CHAT | {"stream": stream}
        assert api.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    api.post("/v1/chat/completions", json=CHAT | {"비밀": "x", "n": "비밀"}, headers=headers)
    mine = [record for record in caplog.records if record.name.startswith("hone")]
    text = "\n".join(record.getMessage() for record in mine)
    assert "POST /v1/chat/completions 200" in text
    assert "key=alice" in text
    assert "sk-one" not in text
    secret = any(word in text for word in ("비밀", "\\xeb\\xb9\\x84\\xeb\\xb0\\x80", "맑아요"))
    assert secret == content


def test_an_error_that_nobody_foresaw_is_a_500_without_content(caplog):
    _, api = http(answer=ZeroDivisionError("비밀이에요"))
    answer = api.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "r1"})
    assert answer.status_code == 500
    assert shaped(answer)["type"] == "server_error"
    assert "비밀" not in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert "r1" in caplog.text
    assert "비밀" not in caplog.text


def test_the_page_is_served_with_its_rules():
    _, api = http()
    answer = api.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<html" in answer.text
    answer = api.get("/playground/api.js")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    for path in ("/playground/../app.py", "/playground/%2e%2e/app.py", "/playground/index.html"):
        assert api.get(path).status_code == 404


def test_the_page_is_told_what_the_model_is():
    _, api = http()
    info = api.get("/api/info").json()
    assert info["name"] == "tiny"
    assert (info["context"], info["adapters"], info["chat"]) == (512, ["sql"], True)
    assert (info["generates"], info["embeds"], info["database"]) == (True, True, False)
    assert info["defaults"] == {"temperature": 1.0}


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}", "{{ 1 // 0 }}"])
def test_a_template_that_is_broken_breaks_no_more_than_chat(template):
    _, api = http(template=template)
    assert api.get("/api/info").json()["tools"] is False
    answer = api.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    shaped(answer)
    assert api.post("/v1/completions", json={"prompt": "a"}).status_code == 200


class Pane:
    """A database of one table."""

    def schema(self):
        return {"name": "shop", "tables": [], "foreign_keys": [], "notes": [], "questions": []}

    def ask(self, question):
        if "?" not in question:
            raise RequestError("This is no question; end it with a question mark.")
        return Question(f"질문: {question}\nSQL:", Grammar("regex", "SELECT.*"), 50)

    def query(self, question, output):
        return output.replace("[V1]", "'서울'")

    def run(self, sql):
        with sqlite3.connect(":memory:") as connection:
            try:
                cursor = connection.execute(sql)
            except sqlite3.Error as error:
                return {
                    "columns": [],
                    "rows": [],
                    "truncated": False,
                    "error": str(error),
                    "seconds": 0.0,
                }
            return {
                "columns": [item[0] for item in cursor.description],
                "rows": [list(row) for row in cursor],
                "truncated": False,
                "error": None,
                "seconds": 0.0,
            }  # fmt: skip


def test_a_question_becomes_sql_and_rows():
    client, api = http(database=Pane(), answer="SELECT [V1] AS 도시")
    assert api.get("/api/info").json()["database"] is True
    assert api.get("/api/database").json()["name"] == "shop"
    answer = api.post("/api/database/ask", json={"question": "어느 도시?", "model": "sql"})
    assert answer.json() == {
        "sql": "SELECT '서울' AS 도시",
        "columns": ["도시"],
        "rows": [["서울"]],
        "truncated": False,
        "error": None,
        "seconds": 0.0,
    }
    (request,) = client.requests
    assert request.params.grammar == Grammar("regex", "SELECT.*")
    assert (request.params.temperature, request.params.max_tokens) == (0.0, 50)
    assert request.adapter == "sql"
    stream = api.post("/api/database/ask", json={"question": "어느 도시?", "stream": True})
    *events, final, done, _ = stream.text.split("\n\n")
    assert done == "data: [DONE]"
    assert "".join(json.loads(event[6:])["delta"] for event in events) == "SELECT [V1] AS 도시"
    assert json.loads(final[6:])["rows"] == [["서울"]]


def test_a_query_runs_and_its_failure_is_told():
    _, api = http(database=Pane())
    assert api.post("/api/database/run", json={"sql": "SELECT 1"}).json()["rows"] == [[1]]
    answer = api.post("/api/database/run", json={"sql": "SELEC"})
    assert answer.status_code == 200
    assert "syntax" in answer.json()["error"]
    for path, body in [
        ("ask", {"question": "no"}),
        ("ask", {}),
        ("ask", {"question": ""}),
        ("run", {}),
    ]:
        answer = api.post(f"/api/database/{path}", json=body)
        assert answer.status_code == 400
        shaped(answer)
    _, api = http()
    assert api.get("/api/database").status_code == 404
    assert api.post("/api/database/run", json={"sql": "SELECT 1"}).status_code == 404


@pytest.mark.parametrize(
    ("file", "defaults"),
    [
        ({}, {"temperature": 1.0}),
        ({"temperature": 0.6, "top_p": 0.95, "n": 2}, {"temperature": 0.6, "top_p": 0.95}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0, "repetition_penalty": 1.0}),
        ({"do_sample": True, "eos_token_id": 3}, {"temperature": 1.0}),
        ({"temperature": None, "top_p": "high"}, {"temperature": 1.0}),
    ],
)  # fmt: skip
def test_defaults_come_from_the_checkpoint(file, defaults):
    assert sampling_defaults(file) == defaults


def test_defaults_hold_where_a_request_says_nothing():
    client, api = http(AppSettings(sampling={"temperature": 0.6, "top_k": 20}))
    api.post("/v1/chat/completions", json=CHAT | {"top_k": 5})
    params = client.requests[0].params
    assert (params.temperature, params.top_k) == (0.6, 5)


def test_the_process_that_speaks_http_has_no_torch():
    code = "import sys, hone.serve.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_api_is_described():
    _, api = http()
    document = api.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    wanted = {(m, p.replace("/tiny", "/{model}")) for m, p in PROTECTED} | {("GET", "/health")}
    assert described == wanted
    assert "messages" in document["components"]["schemas"]["ChatRequest"]["required"]
