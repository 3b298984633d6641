"""A load on any OpenAI-compatible server: requests that arrive, and their answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hone.serve.bench_stream import Answer, Target, send
from hone.serve.bench_workload import Ask, arrivals

_WAIT = 1.0  # seconds until a stream that was refused asks again, where no server says


@dataclass(slots=True)
class Measured:
    """A load and its answers.

    Attributes:
        answers: in the order of arrival, those under way at the end included.
        seconds: from the first arrival to the last end.
        lag: the most seconds that a request was sent after it arrived: the generator's own delay.
        busy: share of one processor that the generator took.
        stopped: ended before all was asked.
    """

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    lag: float = 0.0
    busy: float = 0.0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come: at ``rate`` per second (Poisson), or ``concurrency`` at any time.

    It ends after so many requests, or when no new ones come after ``seconds``; those that run then
    are waited for.
    """

    rate: float | None = None
    concurrency: int = 8
    requests: int | None = None
    seconds: float | None = None
    seed: int = 0


async def run(
    target: Target,
    asks: Iterator[Ask],
    load: Load,
    finished: Callable[[Answer], None] = lambda _: None,
) -> Measured:
    """Put ``load`` on the server; a cancellation ends it early and returns what there is."""
    measured = Measured()
    begun, processor = time.perf_counter(), time.process_time()
    limited = islice(asks, load.requests)
    tasks: set[asyncio.Task[None]] = set()

    async def one(wanted: Ask, arrived: float) -> float:
        answer = Answer(wanted, arrived)
        measured.lag = max(measured.lag, time.perf_counter() - begun - arrived)
        measured.answers.append(answer)
        wait = await send(target, answer, begun)
        finished(answer)
        if answer.trouble in ("", "vanished"):
            return 0.0
        return _WAIT if wait is None else wait

    def start(work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def stream() -> None:
        for wanted in limited:
            now = time.perf_counter() - begun
            if load.seconds is not None and now >= load.seconds:
                return
            wait = await one(wanted, now)
            left = (
                float("inf") if load.seconds is None else begun + load.seconds - time.perf_counter()
            )
            await asyncio.sleep(min(wait, left))

    try:
        if load.rate is None:
            for _ in range(load.concurrency):
                start(stream())
        else:
            times = arrivals(load.rate, load.seed)
            for wanted, arrival in zip(limited, times, strict=False):
                if load.seconds is not None and arrival >= load.seconds:
                    break
                await asyncio.sleep(begun + arrival - time.perf_counter())
                start(one(wanted, arrival))
        while tasks:
            for task in (await asyncio.wait(tasks))[0]:
                task.result()
    except asyncio.CancelledError:
        measured.stopped = True
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    measured.seconds = time.perf_counter() - begun
    measured.busy = (time.process_time() - processor) / max(measured.seconds, 1e-9)
    return measured
