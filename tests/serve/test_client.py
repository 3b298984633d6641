"""The client of the engine's process, with an engine that repeats prompts."""

import asyncio
from contextlib import aclosing

import pytest
from echo_engine import BLOCKS, EMBED, REFUSE
from engine_processes import QUICK, collect, echo_settings, request, running, until

from hone.core.errors import RequestError
from hone.serve import wire
from hone.serve.client import EngineClient, EngineGone


@pytest.mark.smoke
def test_a_request_brings_its_tokens_and_ends():
    async def main():
        async with running() as client:
            assert client.info.name == "echo"
            assert await collect(client, request("a", (7, 8), 5)) == {0: [7, 8, 7, 8, 7]}
            assert client.under_way == 0

    asyncio.run(main())


def test_many_requests_run_together_and_keep_apart():
    async def main():
        async with running() as client:
            wanted = [request(f"r{i}", (i, i + 1), 3 + i % 5, n=1 + i % 3) for i in range(1, 60)]
            found = await asyncio.gather(*(collect(client, one) for one in wanted))
            for one, outputs in zip(wanted, found, strict=True):
                first = one.prompt[0]
                for index in range(one.params.n):
                    expected = [first + index + at % 2 for at in range(one.params.max_tokens)]
                    assert outputs[index] == expected
                assert len(outputs) == one.params.n

    asyncio.run(main())


def test_an_embedding_is_a_request_of_one_delta():
    async def main():
        async with running() as client:
            deltas = [d async for d in client.generate(request("e", (EMBED, 2), embed=True))]
            assert [d.embedding for d in deltas] == [[float(EMBED), 2.0]]

    asyncio.run(main())


def test_a_refusal_meets_only_its_own_request():
    async def main():
        async with running() as client:
            good = asyncio.create_task(collect(client, request("good", tokens=30)))
            with pytest.raises(RequestError, match="This prompt is refused; send another"):
                await collect(client, request("bad", (REFUSE,)))
            assert len((await good)[0]) == 30

    asyncio.run(main())


def test_two_requests_of_one_id_are_refused():
    async def main():
        async with running() as client:
            first = asyncio.create_task(collect(client, request("same", tokens=20)))
            await until(lambda: client.under_way == 1)
            with pytest.raises(RequestError, match="under way already"):
                await collect(client, request("same"))
            assert len((await first)[0]) == 20

    asyncio.run(main())


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_a_reader_that_goes_away_frees_its_blocks(way):
    async def read(client, wanted):
        async with aclosing(client.generate(wanted)) as deltas:
            async for _ in deltas:
                if way == "close":
                    return

    async def main():
        async with running(delay=0.01) as client:
            # Another one keeps the engine busy, so that every step tells how it stands.
            other = asyncio.create_task(collect(client, request("other", tokens=10_000)))
            task = asyncio.create_task(read(client, request("gone", tokens=10_000, n=7)))
            await until(lambda: client.stats().free_blocks == BLOCKS - 8 or task.done())
            if way == "cancel":
                task.cancel()
            await asyncio.wait([task])
            await until(lambda: client.stats().free_blocks == BLOCKS - 1, 1.0)
            assert client.under_way == 1
            other.cancel()

    asyncio.run(main())


def test_one_output_can_be_taken_back_and_the_others_go_on():
    async def main():
        async with running(delay=0.005) as client:
            seen = {0: [], 1: [], 2: []}
            async for delta in client.generate(request("a", (1, 2), 40, n=3)):
                seen[delta.index] += delta.tokens
                if len(seen[1]) >= 5:
                    client.end_output("a", 1)
                    client.end_output("a", 1)
                    client.end_output("b", 0)
            assert (len(seen[0]), len(seen[2])) == (40, 40)
            assert 5 <= len(seen[1]) < 40
            async for delta in client.generate(request("all", (1, 2), 10**6, n=2)):
                client.end_output("all", delta.index)
            await until(lambda: client.stats().free_blocks == BLOCKS)

    asyncio.run(main())


def test_a_slow_reader_gets_what_it_missed_in_one_piece_and_holds_up_nobody():
    async def main():
        async with running(delay=0.001) as client:
            deltas = client.generate(request("slow", (4, 5), 200, n=2))
            seen = [await anext(deltas)]
            assert len((await collect(client, request("quick", tokens=250)))[0]) == 250
            seen += [delta async for delta in deltas]
            by_output = {index: [d for d in seen if d.index == index] for index in (0, 1)}
            for index, parts in by_output.items():
                tokens = [token for delta in parts for token in delta.tokens]
                assert tokens == [4 + index, 5 + index] * 100
                assert [d.finish_reason for d in parts][-1] == "length"
                assert len(parts) <= 3

    asyncio.run(main())


def test_an_idle_engine_sleeps():
    async def main():
        async with running() as client:
            await collect(client, request("a"))
            before = _cpu_seconds(client.process)
            await asyncio.sleep(0.5)
            assert _cpu_seconds(client.process) - before <= 0.02

    asyncio.run(main())


def _cpu_seconds(process):
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_model_that_cannot_be_loaded_is_told_and_not_tried_again():
    async def main():
        client = EngineClient(echo_settings(fail="model.safetensors is broken."), QUICK)
        client.start()
        with pytest.raises(EngineGone, match="is broken"):
            await client.ready()
        assert (client.state, client.restarts, client.process) == ("failed", 0, None)
        with pytest.raises(EngineGone, match="is broken"):
            await collect(client, request("a"))
        assert await client.failed() == "model.safetensors is broken."
        await client.stop()

    asyncio.run(main())


def test_requests_wait_for_nothing_while_the_model_is_loaded():
    async def main():
        client = EngineClient(echo_settings(loading=30.0), QUICK)
        client.start()
        with pytest.raises(EngineGone, match="is being loaded"):
            await collect(client, request("a"))
        await until(lambda: client.process is not None)
        await client.stop()
        with pytest.raises(EngineGone, match="stopping"):
            await client.ready()
        assert client.process is None

    asyncio.run(main())


def test_a_message_that_nobody_foresaw_is_one_more_death(monkeypatch):
    async def main():
        async with running() as client:
            before, read = client.process, wire.read

            async def nonsense(reader):
                await read(reader)
                raise ValueError

            monkeypatch.setattr(wire, "read", nonsense)
            with pytest.raises(EngineGone):
                await collect(client, request("a"))
            monkeypatch.setattr(wire, "read", read)
            await client.ready()
            assert client.process != before
            assert await collect(client, request("b", (7,), 1)) == {0: [7]}

    asyncio.run(main())
