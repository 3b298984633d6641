"""The engine's process, spoken to as its parent does; and the messages themselves."""

import asyncio
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import pytest
from echo_engine import CRASH, PREPARE, REFUSE
from engine_processes import HERE, echo_settings, request

from hone.engine.request import Delta, EngineStats, TokenLogprobs
from hone.serve import wire
from hone.serve.wire import Abort, Add, Failed, Ready, Refused, Settings, Step


class Worker:
    """The process, and our end of the connection."""

    def __init__(self, settings):
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hone.serve.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"PYTHONPATH": HERE},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self.send(settings)

    def send(self, *messages):
        self.ours.sendall(b"".join(map(wire.pack, messages)))

    def receive(self, kind):
        """The next message of a kind."""
        while True:
            message = wire.receive(self.ours)
            if isinstance(message, kind):
                return message

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ours.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.mark.smoke
def test_messages_arrive_as_they_were():
    logprobs = [TokenLogprobs(7, -0.5, ((7, -0.5), (9, -1.25)))]
    messages = [
        Add(request("질문", (1, 2), seed=3, stop=["끝"], logit_bias={5: 1.5})),
        Abort("질문", 1),
        Step([Delta("질문", 1, [7], logprobs, "stop", 32)], 4, True, EngineStats(running=1)),
        Step([Delta("e", embedding=[0.5] * 100_000)], 4, False, None),
    ]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in messages[:3]:
            ours.sendall(wire.pack(message))
        assert [wire.receive(theirs) for _ in range(3)] == messages[:3]
        ours.close()
        with pytest.raises(EOFError):
            wire.receive(theirs)

    async def main():
        reader = asyncio.StreamReader(limit=1024)
        for message in messages:
            reader.feed_data(wire.pack(message))
        reader.feed_data(wire.pack(messages[0])[:-1])
        reader.feed_eof()
        assert [await wire.read(reader) for _ in messages] == messages
        with pytest.raises(EOFError):
            await wire.read(reader)

    asyncio.run(main())


def test_it_says_what_it_is_and_answers():
    with Worker(echo_settings()) as worker:
        ready = worker.receive(Ready)
        assert (ready.info.name, ready.stats.blocks) == ("echo", 1000)
        worker.send(Add(request("a", (1, 2), 3)), Add(request("b", (REFUSE,))))
        refused = worker.receive(Refused)
        assert refused == Refused("b", "This prompt is refused; send another.")
        tokens = []
        while len(tokens) < 3:
            for delta in worker.receive(Step).deltas:
                tokens += delta.tokens
        assert tokens == [1, 2, 1]
        idle = worker.receive(Step)
        assert (idle.busy, idle.handled, idle.stats.running) == (False, 2, 0)


def test_all_that_a_step_brings_is_one_message():
    with Worker(echo_settings(delay=0.02)) as worker:
        worker.receive(Ready)
        worker.send(*(Add(request(f"r{i}", (i,), 3, n=2)) for i in range(1, 51)))
        counts = [len(worker.receive(Step).deltas) for _ in range(4)]
        assert max(counts) == 100


def test_what_takes_long_to_prepare_delays_nobody_else():
    with Worker(echo_settings()) as worker:
        worker.receive(Ready)
        worker.send(Add(request("slow", (PREPARE, 6, 1), 1)), Add(request("quick", (5, 6), 40)))
        order = []
        while "slow" not in order:
            step = worker.receive(Step)
            # An engine that only prepares is not idle.
            assert step.busy or not step.handled
            order += [delta.request for delta in step.deltas]
        assert order == ["quick"] * 40 + ["slow"]
        idle = worker.receive(Step)
        assert (idle.busy, idle.handled) == (False, 2)


def test_what_is_taken_back_or_refused_while_it_is_prepared_never_runs():
    with Worker(echo_settings()) as worker:
        worker.receive(Ready)
        worker.send(
            Add(request("a", (PREPARE, 2, 1), 5)),
            Add(request("b", (PREPARE, 0, REFUSE))),
            Abort("a"),
            Add(request("c", (PREPARE, 0, 1), 1)),
        )
        assert worker.receive(Refused) == Refused("b", "This grammar is refused; send another.")
        step = worker.receive(Step)
        while not step.deltas:
            step = worker.receive(Step)
        assert [delta.request for delta in step.deltas] == ["c"]
        worker.send(Add(request("d", (PREPARE, 0, CRASH))))
        assert "ZeroDivisionError: in the middle of preparing" in worker.receive(Failed).message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_for_the_parent(number):
    with Worker(echo_settings()) as worker:
        worker.receive(Ready)
        worker.process.send_signal(number)
        worker.send(Add(request("a", (1,), 2)))
        assert worker.receive(Step) is not None
        assert worker.process.poll() is None


def test_it_ends_with_its_connection_also_while_it_loads():
    for settings in (echo_settings(), echo_settings(loading=60.0)):
        with Worker(settings) as worker:
            if not settings.arguments:
                worker.receive(Ready)
            worker.ours.close()
            assert worker.process.wait(10) == 0


@pytest.mark.parametrize(
    ("settings", "message", "hopeless"),
    [
        (echo_settings(fail="config.json is missing."), "config.json is missing.", True),
        (Settings("echo_engine:absent"), "AttributeError", False),
        (Settings("no_such_module:load"), "ModuleNotFoundError", False),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_message(settings, message, hopeless):
    with Worker(settings) as worker:
        failed = worker.receive(Failed)
        assert message in failed.message
        assert failed.hopeless == hopeless
        assert worker.process.wait(10) == 1
        assert worker.process.stdout.read() == b""  # what is known is told, not printed


def test_a_message_costs_little():
    """A step of 256 outputs: packing and unpacking it takes well under the step's own time."""
    step = Step([Delta(f"chatcmpl-{i:032x}", 0, [i]) for i in range(256)], 1, True, None)
    start = time.perf_counter()
    for _ in range(20):
        body = wire.pack(step)
        pickle.load(io.BytesIO(body[4:]))
    seconds = (time.perf_counter() - start) / 20
    assert seconds < 0.02  # 1 ms on an idle machine
    assert len(body) < 256 * 100
