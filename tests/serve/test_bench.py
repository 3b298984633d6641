"""A load on a server that does as it is told: what is measured, counted and refused."""

import asyncio
import itertools
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scripted_server import Script, error, piece, serving
from starlette.responses import PlainTextResponse

from hone.core.errors import DataError, HoneError, RequestError
from hone.serve.bench import Load, run
from hone.serve.bench_client import Address, RequestFailedError, ask, events
from hone.serve.bench_explore import explore
from hone.serve.bench_picture import draw
from hone.serve.bench_report import Limits, Spread, record, summarise
from hone.serve.bench_stream import Target, text_alone
from hone.serve.bench_workload import (
    Ask,
    Lengths,
    Words,
    arrivals,
    drawn,
    from_file,
    parse_lengths,
    read_asks,
    words,
)


def asks(count=5, leave_after=None):
    return itertools.repeat(Ask("오늘 날씨 question", count, leave_after))


def measure(script, load, source=None, api="completions", timeout=20.0):
    with serving(script) as url:
        target = Target(Address.parse(url), "scripted", api, timeout=timeout)
        return asyncio.run(run(target, source or asks(), load))


@pytest.mark.smoke
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_whole_answers_are_measured(api):
    script = Script()
    measured = measure(script, Load(concurrency=3, requests=12), api=api)
    report = summarise(measured)
    assert (report.sent, report.whole, report.errors) == (12, 12, {})
    assert (report.output_tokens, report.prompt_tokens) == (60, 12 * 9)
    assert report.most_at_once == script.most == 3
    for answer in measured.answers:
        assert answer.text == "".join(piece(index) for index in range(5))
        assert len(answer.times) == 5
        assert answer.start <= answer.times[0] <= answer.times[-1] <= answer.end
        assert list(answer.times) == sorted(answer.times)
    assert report.ttft.p50 <= report.latency.p50 <= measured.seconds
    assert report.request_rate == pytest.approx(12 / measured.seconds)
    assert record(measured.answers[0])["tokens"] == 5


def test_times_are_those_of_the_stream():
    measured = measure(Script(gap=0.05), Load(concurrency=2, requests=4))
    report = summarise(measured)
    # A busy machine makes them longer, and nothing makes them shorter.
    assert report.itl.mean >= 0.045
    assert report.per_token.mean >= 0.045
    assert report.latency.mean >= report.ttft.mean + 4 * 0.045


@pytest.mark.parametrize(
    ("behaviour", "kind", "detail"),
    [
        ("cut", "cut off", "without [DONE]"),
        ("error", "error in the stream", "the engine is gone"),
        ("mixed", "out of order", "a piece of another in id-"),
        ("late text", "out of order", "text after the reason"),
        ("no reason", "out of order", ""),
    ],
)
def test_a_broken_stream_is_told_apart(behaviour, kind, detail):
    def behave(number, body):
        return behaviour if number == 2 else "good"

    measured = measure(Script(behave), Load(concurrency=1, requests=3))
    report = summarise(measured)
    assert (report.whole, report.errors) == (2, {kind: 1})
    assert detail in report.words[kind]
    assert measured.answers[1].trouble == kind


def test_refusals_are_counted_apart_from_errors():
    answers = {
        1: error(429, "come back", **{"Retry-After": "0.01"}),
        2: error(500, "broken"),
        3: PlainTextResponse("gone", 503, {"Retry-After": "0"}),
    }
    script = Script(lambda number, body: answers.get(number, "good"))
    measured = measure(script, Load(concurrency=1, requests=5))
    report = summarise(measured)
    assert (report.whole, report.refused) == (2, 1)
    assert report.errors == {"HTTP 500": 1, "HTTP 503": 1}
    assert report.words == {"HTTP 500": "broken", "HTTP 503": "gone"}


def test_a_refused_stream_waits_as_long_as_it_is_told():
    def behave(number, body):
        return error(429, "come back", **{"Retry-After": "0.3"}) if number == 1 else "good"

    measured = measure(Script(behave), Load(concurrency=1, requests=2))
    first, second = measured.answers
    assert second.start - first.end >= 0.3


def test_a_request_without_end_times_out():
    script = Script(lambda number, body: "hang" if number == 1 else "good")
    measured = measure(script, Load(concurrency=2, requests=3), timeout=1.5)
    assert summarise(measured).errors == {"timeout": 1}
    assert measured.seconds < 30


def test_clients_that_leave_are_noticed_and_are_no_error():
    script = Script(gap=0.01)
    with serving(script) as url:
        target = Target(Address.parse(url), "scripted")
        measured = asyncio.run(run(target, asks(200, leave_after=3), Load(requests=6)))
        report = summarise(measured)
        assert (report.vanished, report.whole, report.errors) == (6, 0, {})
        for _ in range(200):
            if script.left == 6:
                break
            threading.Event().wait(0.02)
    assert script.left == 6
    assert all(len(answer.times) == 3 for answer in measured.answers)


def test_a_load_that_is_stopped_tells_what_there_is():
    async def main(target):
        count = itertools.count(1)

        def stop(answer):
            if next(count) == 3:
                task.cancel()

        task = asyncio.create_task(run(target, asks(), Load(rate=50.0, seconds=60.0), stop))
        return await task

    script = Script(lambda number, body: "hang" if number == 2 else "good")
    with serving(script) as url:
        measured = asyncio.run(main(Target(Address.parse(url), "scripted")))
    report = summarise(measured)
    assert measured.stopped
    assert report.whole >= 3
    assert report.unfinished == report.sent - report.whole > 0
    assert not report.errors


def test_seconds_bound_when_requests_come():
    measured = measure(Script(), Load(concurrency=2, seconds=0.5))
    assert all(answer.start < 0.5 for answer in measured.answers)
    assert summarise(measured).whole == len(measured.answers) > 0


def test_arrivals_are_a_poisson_process():
    moments = list(itertools.islice(arrivals(20.0, seed=3), 4000))
    assert moments == list(itertools.islice(arrivals(20.0, seed=3), 4000))
    gaps = np.diff([0.0, *moments])
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.07)  # as of an exponential one


def test_requests_arrive_when_they_are_to():
    measured = measure(Script(), Load(rate=40.0, requests=30, seed=5))
    wanted = list(itertools.islice(arrivals(40.0, 5), 30))
    assert [answer.start for answer in measured.answers] == pytest.approx(wanted)


def test_the_mix_has_the_means_that_it_names():
    chooser = random.Random(0)
    both = [Lengths(context=10**9).draw(chooser) for _ in range(20_000)]
    assert statistics.mean(p for p, _ in both) == pytest.approx((161.31 + 19.31) / 2, rel=0.03)
    assert statistics.mean(a for _, a in both) == pytest.approx((337.99 + 58.45) / 2, rel=0.03)
    short = [Lengths(context=100).draw(chooser) for _ in range(2000)]
    assert all(1 <= p <= 50 and a >= 1 and p + a <= 100 for p, a in short)


def test_one_seed_makes_one_load():
    def first(seed, **options):
        return list(itertools.islice(drawn(Lengths(), seed, **options), 20))

    assert first(1) == first(1) != first(2)
    assert len({ask.prompt for ask in first(1)}) == 20
    ids = first(1, vocabulary=50)
    assert all(0 <= i < 50 for ask in ids for i in ask.prompt)
    assert [len(ask.prompt) for ask in first(4, vocabulary=9)] != [20] * 20


def test_a_server_is_explored():
    script = Script()
    with serving(script) as url:
        found = asyncio.run(explore(Address.parse(url), None, "completions", 20.0, {"seed": 1}))
    assert found.target.model == "scripted"
    assert found.target.usage
    assert found.context == 100
    assert (found.words.each, found.words.extra) == (2.0, 3.0)
    assert found.words.count(43) == 20
    assert all(body["seed"] == 1 for body in script.seen)
    text = words(20, random.Random(0))
    assert re.search("[가-힣]", text)
    assert len(text.split()) == 20


def test_a_server_that_tells_no_usage_is_counted_by_pieces():
    async def main(url):
        found = await explore(Address.parse(url), "scripted", "chat", 20.0, {})
        return found, await run(found.target, asks(), Load(requests=2))

    with serving(Script(usage=False)) as url:
        found, measured = asyncio.run(main(url))
    assert not found.target.usage
    assert found.words == Words()
    assert [answer.tokens for answer in measured.answers] == [5, 5]


def test_the_key_is_sent_and_never_shown():
    script = Script(key="s3cret")
    with serving(script) as url:
        asyncio.run(explore(Address.parse(url, "s3cret"), None, "completions", 20.0, {}))
        assert {head["authorization"] for head in script.headers} == {"Bearer s3cret"}
        with pytest.raises(HoneError, match="wants a key") as caught:
            asyncio.run(explore(Address.parse(url, "wrong"), None, "completions", 20.0, {}))
        assert "wrong" not in str(caught.value)
        with pytest.raises(RequestError, match="has no model 'other'; it serves scripted"):
            asyncio.run(explore(Address.parse(url, "s3cret"), "other", "chat", 20.0, {}))


def test_nobody_there_is_one_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = Address.parse(f"http://127.0.0.1:{port}")
    with pytest.raises(HoneError, match=rf"^Nothing answers at http://127.0.0.1:{port}/v1: conne"):
        asyncio.run(explore(address, None, "completions", 20.0, {}))


@pytest.mark.parametrize(
    ("url", "base", "port", "tls"),
    [
        ("localhost:9", "http://localhost:9/v1", 9, False),
        ("http://h/", "http://h/v1", 80, False),
        ("https://h/api/v1/", "https://h/api/v1", 443, True),
        ("http://[::1]:80/x", "http://[::1]:80/x/v1", 80, False),
    ],
)
def test_addresses(url, base, port, tls):
    found = Address.parse(url)
    assert (found.base, found.port, found.tls) == (base, port, tls)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:port", "http://h?x=1", "http://h:99999"])
def test_what_is_no_address(url):
    with pytest.raises(RequestError, match="is no server; give its URL"):
        Address.parse(url)


class Raw:
    """A server that answers every connection with the same bytes."""

    def __init__(self, answer):
        self.answer = answer

    async def __aenter__(self):
        async def talk(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
            await writer.drain()
            writer.close()

        self.server = await asyncio.start_server(talk, "127.0.0.1", 0)
        return Address.parse(f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}")

    async def __aexit__(self, *error):
        self.server.close()


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"Content-Length: 9\r\n\r\ndata: ab\n", "cut off"),
        (b"Content-Length: 10\r\n\r\ndata: ab\n\n", ["ab"]),
        (b"\r\ndata: a\r\ndata: b\r\n\r\n:x\n\ndata:c\n\n", ["a\nb", "c"]),
        (
            b"Transfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n4\r\n ab\n\r\n1\r\n\n\r\n0\r\n\r\n",
            ["ab"],
        ),
        (b"Transfer-Encoding: chunked\r\n\r\nff\r\ndata:", "cut off"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not the protocol"),
        (b"Content-Length: 99\r\n\r\ndata: ab\n\n", "cut off"),
    ],
)
def test_bodies_of_every_kind(answer, found):
    async def main():
        async with Raw(HEAD + answer) as address:
            return [data async for data in events(address, "/completions", {})]

    if isinstance(found, list):
        assert asyncio.run(main()) == found
    else:
        with pytest.raises(RequestFailedError) as caught:
            asyncio.run(main())
        assert caught.value.kind == found


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0\r\n\r\n",
        HEAD + b"Content-Length: 3\r\n\r\n{x}",
        HEAD + b"Content-Length: x\r\n\r\n",
    ],
)
def test_what_is_no_answer(answer):
    async def main():
        async with Raw(answer) as address:
            return await ask(address, "GET", "/models")

    with pytest.raises(RequestFailedError, match="not the protocol"):
        asyncio.run(main())


def test_the_text_alone_is_that_of_the_stream():
    async def main(url, api):
        target = Target(Address.parse(url), "scripted", api)
        return await text_alone(target, next(asks()))

    with serving(Script()) as url:
        for api in ("completions", "chat"):
            assert asyncio.run(main(url, api)) == "안녕하세요 🙂 hello"


def test_goodput_counts_requests_within_their_limits():
    def behave(number, body):
        return "cut" if number == 1 else "good"

    measured = measure(Script(behave, gap=0.03), Load(concurrency=1, requests=4))
    seconds = measured.seconds
    assert summarise(measured).goodput == pytest.approx(3 / seconds)
    assert summarise(measured, Limits(ttft=10.0, itl=10.0)).goodput == pytest.approx(3 / seconds)
    assert summarise(measured, Limits(ttft=1e-9)).goodput == 0
    assert summarise(measured, Limits(itl=0.001)).goodput == 0


def test_spreads():
    found = Spread.of(list(range(1, 101)))
    assert (found.mean, found.p50, found.most) == (50.5, 50.5, 100)
    assert found.p95 == pytest.approx(np.percentile(range(1, 101), 95))
    assert Spread.of([]) is None


def test_the_picture_is_drawn_even_of_nothing(tmp_path):
    measured = measure(Script(), Load(concurrency=2, requests=8))
    draw(measured, summarise(measured, Limits(0.1, 0.01)), tmp_path / "load.svg", "title")
    assert "#c44e52" in (tmp_path / "load.svg").read_text()  # the limits
    measured.answers.clear()
    draw(measured, summarise(measured), tmp_path / "none.svg", "title")
    assert (tmp_path / "none.svg").read_text().startswith("<?xml")


def test_files_of_prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "오늘 주문은?", "max_tokens": 7}\n\n{"prompt": [1, 2]}\n'
        '{"messages": [{"role": "user", "content": "안녕"}]}\n',
        encoding="utf-8",
    )
    found = read_asks(file)
    assert found[0] == Ask("오늘 주문은?", 7)
    assert found[1] == Ask([1, 2], 128)
    assert found[2].messages == [{"role": "user", "content": "안녕"}]
    many = list(itertools.islice(from_file(found, 0), 9))
    assert all(many.count(ask) == 3 for ask in found)
    assert parse_lengths(str(file)) == file


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: expected an object with one of"),
        ('{"prompt": "a", "messages": []}', "expected an object with one of"),
        ('{"prompt": ["a"]}', r"`prompt` is \['a'\]; expected a text or token ids"),
        ('{"prompt": ""}', "`prompt` is ''; expected a text"),
        ('{"messages": "a"}', "`messages` is 'a'; expected a list of messages"),
        ('{"prompt": "a", "max_tokens": true}', "`max_tokens` is True; expected a whole number"),
    ],
)
def test_lines_that_are_no_prompts(tmp_path, line, sentence):
    file = tmp_path / "bad.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        read_asks(file)


def test_lengths_on_the_command_line():
    assert parse_lengths("mix") is None
    assert parse_lengths("128:32") == (128, 32)
    for text in ("128", "0:5", "a:b", "none.txt"):
        with pytest.raises(RequestError, match="give mix, tokens of prompt and answer"):
            parse_lengths(text)


@pytest.mark.slow
@pytest.mark.parametrize("vanish", [0.0, 0.4])
def test_a_server_under_load_loses_nothing(vanish):
    """The short form of what benchmarks/load.py does for five minutes."""
    script = Path(__file__).parents[2] / "benchmarks" / "load.py"
    options = f"--streams 60 --seconds 15 --warm 5 --lengths 16:24 --ttft 120 --vanish {vanish}"
    command = [sys.executable, str(script), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks hold." in done.stdout
