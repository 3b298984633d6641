"""Clients that stop half way: in their headers, in their body, in the middle of a stream."""

import json
import socket
import struct
import threading
import time

import httpx
import pytest
from scripted import make_app, scripted, serving, until

from hone.serve import connections
from hone.serve.app import AppSettings
from hone.serve.limits import Bounds
from hone.serve.openai import http

LONG = "서울 부산 대구 " * 2000


@pytest.fixture(scope="module")
def server():
    client = scripted()
    with serving(make_app(client, AppSettings(bounds=Bounds(seconds=3, body_bytes=10_000)))) as url:
        yield client, url


@pytest.fixture
def engine(server):
    client, _ = server
    client.answer, client.delay, client.together = LONG, 0.001, 1
    client.requests.clear()
    client.taken_back.clear()
    yield client
    until(lambda: client.running == 0)  # whatever happened, nothing is left


@pytest.fixture
def connect(server, engine):
    host, port = server[1].removeprefix("http://").split(":")
    made = []

    def open_one():
        made.append(socket.create_connection((host, int(port)), timeout=5))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def asking(stream=True, **fields):
    body = {"messages": [{"role": "user", "content": "안녕"}], "stream": stream} | fields
    data = json.dumps(body).encode()
    return data, (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(data)
    )


def reset(connection):
    """Close as a machine does that is switched off: without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def alive(server):
    return httpx.get(f"{server[1]}/health").json() == {"state": "ready"}


@pytest.mark.parametrize("ending", [reset, socket.socket.close])
@pytest.mark.parametrize("part", ["nothing", "line", "headers", "body", "stream", "waiting"])
def test_a_client_that_stops_half_way_leaves_nothing_behind(server, engine, connect, part, ending):
    connection = connect()
    body, headers = asking(stream=part != "waiting")
    if part == "line":
        connection.sendall(headers[:20])
    elif part == "headers":
        connection.sendall(headers[:-10])
    elif part == "body":
        connection.sendall(headers + body[:-5])
    elif part in ("stream", "waiting"):
        connection.sendall(headers + body)
        if part == "stream":
            assert b"data: " in connection.recv(4096)
        until(lambda: engine.running == 1)
    ending(connection)
    until(lambda: engine.running == 0)
    assert alive(server)
    assert len(engine.requests) == len(engine.taken_back) == (part in ("stream", "waiting"))


def test_a_request_is_taken_back_within_a_step_of_the_clients_leaving(server, engine, connect):
    engine.delay = 0.05
    connection = connect()
    body, headers = asking()
    connection.sendall(headers + body)
    connection.recv(4096)
    reset(connection)
    left = time.monotonic()
    until(lambda: engine.running == 0)
    assert time.monotonic() - left < 0.5
    # Nobody was refused anything, and the log of the proxy says the same.
    until(lambda: 'status="499"' in httpx.get(f"{server[1]}/metrics").text)
    assert 'status="408"} ' not in httpx.get(f"{server[1]}/metrics").text


def test_a_slow_reader_delays_nobody_and_is_ended(server, engine, connect):
    engine.delay, engine.together = 0.0, 50
    engine.answer = lambda request, index: LONG * (20 if request.params.n == 1 else 0) or "짧아요"
    slow = connect()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body, headers = asking(logprobs=True, top_logprobs=20)
    slow.sendall(headers + body)
    slow.recv(100)
    started = time.monotonic()
    quick = httpx.post(
        f"{server[1]}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "a"}], "n": 2},
        timeout=10,
    )
    assert quick.status_code == 200
    assert time.monotonic() - started < 2.5
    # After the time of a request the slow one is over too, although nobody reads of it.
    until(lambda: engine.running == 0, seconds=8)


def test_a_body_that_does_not_come_is_a_408(server, engine, connect, monkeypatch):
    monkeypatch.setattr(http, "_BODY_SECONDS", 0.1)
    connection = connect()
    body, headers = asking()
    connection.sendall(headers + body[:10])
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"slow_body"' in answer


def test_a_body_in_chunks_is_bounded_while_it_comes(server, engine, connect):
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = b""
    for _ in range(20):
        try:
            connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        except OSError:
            break
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_length_that_is_too_large_is_refused_before_the_body(server, engine, connect):
    connection = connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
    ],
)
def test_what_is_no_http_is_answered_or_closed(server, engine, connect, garbage):
    connection = connect()
    answer = b""
    try:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            answer += part
    except OSError:
        pass
    assert not answer or answer.split(b" ")[1] in (b"400", b"404", b"200", b"413", b"431")
    assert alive(server)


def test_a_head_that_does_not_come_is_not_waited_for(server, engine, connect, monkeypatch):
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)
    silent, slow, late, patient = (connect() for _ in range(4))
    body, headers = asking(stream=False)
    engine.answer = "짧아요"
    late.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert late.recv(65536).startswith(b"HTTP/1.1 200 ")
    late.sendall(headers[:10])  # the head of its second request
    # Who is answered has time: the bound is one of heads.
    engine.delay = 0.2
    patient.sendall(headers + body)
    started = time.monotonic()
    for byte in headers[:-10]:
        try:
            slow.sendall(bytes([byte]))
        except OSError:
            break
        time.sleep(0.02)
    else:
        assert slow.recv(1) == b""
    assert time.monotonic() - started < 3
    for connection in (silent, late):
        assert connection.recv(1) == b""
    assert patient.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_not_kept(server, engine, connect):
    connection = connect()
    connection.sendall(b"GET /health HTTP/1.1\r\n")
    answer = b""
    try:
        for number in range(1000):
            connection.sendall(b"X-%d: " % number + b"a" * 1000 + b"\r\n")
        answer = connection.recv(65536)
    except TimeoutError:
        pytest.fail("a megabyte of headers is still listened to")
    except OSError:
        pass
    assert answer[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")
    assert alive(server)


def test_the_next_head_has_its_own_room_whatever_the_last_body_took(server, engine, connect):
    connection = connect()
    large = b'{"prompt": "' + b" " * 9_000 + b'"}'
    head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(large)
    for _ in range(15):  # together more than one head may have
        connection.sendall(head[:30])
        time.sleep(0.005)
        connection.sendall(head[30:] + large[:5000])
        time.sleep(0.005)
        connection.sendall(large[5000:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_behind_one_another_on_a_connection_are_answered_in_order(server, engine, connect):
    engine.answer, engine.delay = "짧아요", 0.0
    connection = connect()
    body, headers = asking(stream=False)
    connection.sendall((headers + body) * 3)
    answer = b""
    while answer.count(b'"finish_reason":"stop"') < 3:
        part = connection.recv(65536)
        assert part
        answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == 3


def test_many_clients_vanish_at_random_and_nothing_leaks(server, engine, connect):
    import random

    draw = random.Random(0)
    for _ in range(60):
        connection = connect()
        body, headers = asking(stream=draw.random() < 0.7)
        whole = headers + body
        connection.sendall(whole[: draw.randint(0, len(whole) * 2)])
        if draw.random() < 0.5:
            time.sleep(draw.random() * 0.01)
        draw.choice([reset, socket.socket.close])(connection)
    until(lambda: engine.running == 0)
    assert alive(server)
    assert sorted(engine.taken_back) == sorted(request.id for request in engine.requests)


def test_slow_queries_hold_up_no_text(engine):
    go, asked = threading.Event(), []

    class Slow:
        def run(self, sql):
            asked.append(sql)
            go.wait(20)
            return {"rows": []}

    with serving(make_app(engine, database=Slow())) as url:

        def query():
            httpx.post(f"{url}/api/database/run", json={"sql": "SELECT 1"}, timeout=30)

        threads = [threading.Thread(target=query) for _ in range(40)]
        for thread in threads:
            thread.start()
        until(lambda: asked)
        time.sleep(0.3)
        answer = httpx.post(f"{url}/tokenize", json={"prompt": LONG}, timeout=5)
        assert answer.status_code == 200
        go.set()
        for thread in threads:
            thread.join()
        assert len(asked) == 40
