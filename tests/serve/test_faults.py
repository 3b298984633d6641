"""What goes wrong around the engine's process: it is killed, hangs, crashes, or is left alone."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from echo_engine import BLOCKS, CRASH, HANG, VANISH
from engine_processes import HERE, QUICK, collect, echo_settings, request, running, until

from hone.serve.client import EngineClient, EngineGone
from hone.serve.wire import Settings


async def _broken(client, wanted):
    """Reads a request that the engine does not survive; returns how many tokens came before."""
    count = 0
    try:
        async for delta in client.generate(wanted):
            count += len(delta.tokens)
    except EngineGone:
        return count
    raise AssertionError("the engine survived")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_engine_ends_its_requests_and_comes_back_by_itself(number):
    async def main():
        async with running() as client:
            before = client.process
            tasks = [
                asyncio.create_task(_broken(client, request(f"r{i}", tokens=10**6)))
                for i in range(20)
            ]
            await asyncio.sleep(0.1)
            os.kill(before, number)
            counts = await asyncio.gather(*tasks)
            assert min(counts) > 0
            assert client.state == "loading"
            assert client.stats() is None
            with pytest.raises(EngineGone, match="being loaded"):
                await collect(client, request("early"))
            await client.ready()
            assert client.process != before
            assert client.restarts == 1
            assert await collect(client, request("late", (1, 2), 3)) == {0: [1, 2, 1]}
            await until(lambda: client.stats().free_blocks == BLOCKS)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (CRASH, "ZeroDivisionError: in the middle of a step (echo_engine.py, line"),
        (VANISH, "exit code 3"),
    ],
)
def test_an_engine_that_crashes_says_why_and_is_started_again(token, reason, caplog):
    async def main():
        async with running() as client:
            other = asyncio.create_task(_broken(client, request("other", tokens=10**6)))
            await until(lambda: client.under_way == 1)
            assert await _broken(client, request("poison", (token, 777_777))) == 0
            await other
            await client.ready()
            assert len((await collect(client, request("late")))[0]) == 5

    asyncio.run(main())
    assert reason in caplog.text
    assert "777" not in caplog.text  # nothing of what was asked


def test_an_engine_that_hangs_is_killed_and_started_again(caplog):
    async def main():
        async with running() as client:
            start = time.monotonic()
            await _broken(client, request("hang", (HANG,)))
            assert QUICK.hang <= time.monotonic() - start < QUICK.hang * 3
            await client.ready()
            assert len((await collect(client, request("late")))[0]) == 5

    asyncio.run(main())
    assert "no sign of life" in caplog.text


def test_a_stopped_process_is_noticed_though_its_requests_are_taken_back():
    async def main():
        async with running() as client:
            before = client.process
            os.kill(before, signal.SIGSTOP)
            task = asyncio.create_task(collect(client, request("a")))
            await asyncio.sleep(0.05)
            task.cancel()
            await until(lambda: client.restarts == 1)
            await client.ready()
            assert client.process != before

    asyncio.run(main())


def test_work_that_takes_longer_than_the_patience_is_no_hang():
    async def main():
        async with running(replace(QUICK, hang=0.4), delay=0.01) as client:
            assert len((await collect(client, request("long", tokens=80)))[0]) == 80
            await asyncio.sleep(0.6)  # idle is no hang either
            assert client.restarts == 0

    asyncio.run(main())


def test_an_engine_that_dies_again_and_again_is_given_up():
    async def main():
        client = EngineClient(echo_settings(die_with=9), QUICK)
        client.start()
        reason = await client.failed()
        assert reason.startswith("The engine died 4 times in a row")
        assert reason.endswith("exit code 9.")
        assert client.restarts == QUICK.quick_deaths
        await client.stop()

    asyncio.run(main())


def test_deaths_far_apart_are_not_counted_together():
    async def main():
        async with running(replace(QUICK, settled=0.0, quick_deaths=1)) as client:
            for count in range(1, 4):
                await _broken(client, request("poison", (VANISH,)))
                await client.ready()
                assert client.restarts == count

    asyncio.run(main())


PARENT = """
import asyncio, sys
from engine_processes import collect, request, running
async def main():
    async with running() as client:
        print(client.process, flush=True)
        await collect(client, request("a", ({token},), 10**6))
asyncio.run(main())
"""


@pytest.mark.parametrize("token", [1, HANG])
def test_the_engine_dies_with_its_parent_whatever_it_does(token):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(token=token)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": HERE},
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 5
    while _alive(worker) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(worker)


def _alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_draining_finishes_what_runs_and_takes_nothing_new():
    async def main():
        async with running() as client:
            task = asyncio.create_task(collect(client, request("a", tokens=50)))
            await until(lambda: client.under_way == 1)
            drain = asyncio.create_task(client.drain(10.0))
            await until(lambda: client.state == "stopping")
            with pytest.raises(EngineGone, match="stopping"):
                await collect(client, request("b"))
            assert len((await task)[0]) == 50
            await drain
            assert client.process is None

    asyncio.run(main())


def test_draining_waits_no_longer_than_it_was_told():
    async def main():
        async with running() as client:
            task = asyncio.create_task(_broken(client, request("a", tokens=10**6)))
            await until(lambda: client.under_way == 1)
            start = time.monotonic()
            await client.drain(0.2)
            assert time.monotonic() - start < 1.5
            assert await task > 0

    asyncio.run(main())


async def _taken_back(client, wanted, reads):
    """Reads a few deltas of a request, or waits until it is cancelled."""
    async with aclosing(client.generate(wanted)) as deltas:
        async for _ in deltas:
            reads -= 1
            if reads == 0:
                return
    raise AssertionError("it was to go on for ever")


async def _take_back_a_thousand(client, tokens, pause=0.01):
    """In every phase: not sent yet, waiting, in the middle, one output of several."""
    for start in range(0, 1000, 100):
        tasks = []
        for number in range(start, start + 100):
            prompt = [1 + (number * 7 + i) % 200 for i in range(1 + number % 90)]
            wanted = request(f"r{number}", prompt, tokens, n=1 + number % 3, ignore_eos=True)
            tasks.append(asyncio.create_task(_taken_back(client, wanted, number % 7 - 1)))
        await asyncio.sleep(pause * (1 + start / 200))
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert end is None or isinstance(end, asyncio.CancelledError)
    assert client.under_way == 0
    assert len((await collect(client, request("last", ignore_eos=True)))[0]) == 5
    await until(lambda: client.stats().running == 0 and client.stats().waiting == 0)
    assert client.stats().free_blocks == client.stats().blocks
    assert client.restarts == 0


def test_a_thousand_requests_taken_back_leave_nothing():
    async def main():
        async with running(delay=0.0) as client:
            await _take_back_a_thousand(client, 10**6)

    asyncio.run(main())


@pytest.mark.slow
def test_a_thousand_requests_taken_back_leave_nothing_in_the_real_engine(tmp_path):
    import torch

    from hone.engine.options import EngineOptions
    from hone.models import CausalLM, ModelConfig, save_checkpoint
    from hone.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["안녕 hello 😀"] * 3, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    llama = CausalLM(config, torch.float32)
    llama.initialise(seed=1)
    save_checkpoint(tmp_path / "model", llama, tokenizer)
    # Blocks for a few requests only: most wait, and some lose theirs to others.
    options = EngineOptions(block_size=16, cache_bytes=160 * 16 * 2 * 2 * 32 * 4)
    arguments = {"model": str(tmp_path / "model"), "name": "m", "options": options}
    settings = Settings(arguments=arguments, threads=1)

    async def main():
        async with running(replace(QUICK, hang=60.0), settings) as client:
            await _take_back_a_thousand(client, 1500, 0.15)
            before = _resident(client.process)
            for _ in range(2):
                await _take_back_a_thousand(client, 1500, 0.15)
            assert client.stats().preemptions > 0
            assert _resident(client.process) < before * 1.1

    asyncio.run(main())


def _resident(process):
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1])
