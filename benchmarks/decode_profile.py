"""Where a decode step of hone goes: the model's products, attention, sampling, the rest."""

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

import hone
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.request import Request
from hone.kernels import preferred_dtype

_PARTS = ("products", "attention", "vocabulary", "sampler", "cache's plan", "scheduler", "rest")
_OWN = ("cache's plan", "scheduler", "rest")


class Stopwatch:
    """Seconds by ``clock`` spent in functions, those of inner ones taken from the outer ones."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self._clock = clock
        self._inner: list[float] = []

    def watch(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with its seconds added to ``part``."""

        @wraps(function)
        def watched(*args: Any, **keywords: Any) -> Any:
            self._inner.append(0.0)
            start = self._clock()
            try:
                return function(*args, **keywords)
            finally:
                seconds = self._clock() - start
                self.seconds[part] += seconds - self._inner.pop()
                if self._inner:
                    self._inner[-1] += seconds

        return watched


class _Sampler:
    """A sampler that is watched when it is called."""

    def __init__(self, sampler: Any, watch: Stopwatch) -> None:
        self._sampler = sampler
        self._choose = watch.watch("sampler", sampler.__call__)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._choose(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def decode_step(
    path: Path, dtype: str, batch: int, prompt: int, new: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each part of a step in which ``batch`` sequences decode, the mean of ``new``."""
    lm = hone.load(path, dtype, exact=False)
    options = EngineOptions(max_running=batch, max_batch_tokens=max(2048, batch * prompt))
    engine = Engine(lm.model, lm.tokenizer, lm.end_ids, options=options)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, lm.config.vocab_size, (batch, prompt), generator=generator)
    params = hone.SamplingParams(max_tokens=new + 8, ignore_eos=True)
    for number, ids in enumerate(ids_BT.tolist()):
        engine.add(Request(str(number), tuple(ids), params))
    while engine.stats().generated_tokens < 3 * batch:  # the prompts, and steps to warm up
        engine.step()
    watch = Stopwatch(clock)
    # What a step calls, wherever its inner parts are taken from.
    decoder: Any = lm.model.decoder
    model: Any = lm.model
    cache: Any = engine._cache
    scheduler: Any = engine._scheduler
    decoder.forward = watch.watch("products", decoder.forward)
    model.logits = watch.watch("vocabulary", model.logits)
    cache.attend = watch.watch("attention", cache.attend)
    cache.begin = watch.watch("cache's plan", cache.begin)
    scheduler.schedule = watch.watch("scheduler", scheduler.schedule)
    runner: Any = engine._runner
    runner.sampler = _Sampler(runner.sampler, watch)
    step = watch.watch("rest", engine.step)
    for _ in range(new):
        step()
    assert engine.stats().running == batch
    return {part: seconds / new for part, seconds in watch.seconds.items()}


def profile(
    original: Path, int8: Path, batches: list[int], prompt: int, new: int, emulated: bool
) -> None:
    """Print a table: milliseconds of a decode step by part.

    The engine's own work runs on one thread; its processor time is what it costs where something
    else keeps the machine busy as well.
    """
    formats = [("fp32", original, "float32"), ("int8", int8, "auto")]
    if preferred_dtype() == torch.bfloat16 or emulated:
        formats.insert(1, ("bf16", original, "bfloat16"))
    head = ["ms of a decode step", *_PARTS, "whole", "engine's own", "in processor time"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, path, dtype in formats:
        for batch in batches:
            parts = decode_step(path, dtype, batch, prompt, new, time.perf_counter)
            busy = decode_step(path, dtype, batch, prompt, new, time.thread_time)
            own = [sum(each[part] for part in _OWN) for each in (parts, busy)]
            cells = [*parts.values(), sum(parts.values()), *own]
            row = [f"{name} ×{batch}", *(f"{seconds * 1e3:.2f}" for seconds in cells)]
            print(f"| {' | '.join(row)} |", flush=True)
