"""An engine without a model, for tests of everything around it: it repeats prompts, in blocks.

The process that is tested imports this file by its name; it needs no torch.
"""

import os
import time
from dataclasses import replace

from hone.core.errors import CheckpointError, RequestError
from hone.engine.request import Delta, EngineStats
from hone.serve.info import ModelInfo

BLOCKS = 1000
# Prompts that begin with one of these tokens have it do something else than repeat.
REFUSE, CRASH, HANG, VANISH, EMBED, PREPARE = 901, 902, 903, 904, 905, 906


class EchoEngine:
    """One token per step and output; a request holds one block per output."""

    def __init__(self, delay, rows):
        self._delay, self._rows = delay, rows
        self._requests, self._done, self._open = {}, {}, {}
        self._stats = EngineStats(blocks=BLOCKS, free_blocks=BLOCKS)

    @property
    def busy(self):
        return bool(self._requests)

    def prepare(self, request):
        if request.prompt[0] != PREPARE:
            return None
        return lambda: _prepare(request.prompt)

    def add(self, request):
        if request.prompt[0] == REFUSE:
            raise RequestError("This prompt is refused; send another.")
        self._requests[request.id] = request
        self._done[request.id] = 0
        self._open[request.id] = set(range(request.params.n))

    def delay(self):
        return 0.0

    def abort(self, request_id, index=None):
        if request_id not in self._requests:
            return
        open_ones = self._open[request_id]
        open_ones.difference_update(open_ones if index is None else {index})
        if not open_ones:
            del self._requests[request_id]

    def step(self):
        time.sleep(self._delay)
        deltas = []
        for request in list(self._requests.values())[: self._rows]:
            deltas += self._advance(request)
        self._stats = replace(self._stats, steps=self._stats.steps + 1)
        return deltas

    def _advance(self, request):
        first = request.prompt[0]
        if first == CRASH:
            raise ZeroDivisionError("in the middle of a step")
        if first == HANG:
            time.sleep(3600)
        if first == VANISH:
            os._exit(3)
        if request.embed:
            del self._requests[request.id]
            return [Delta(request.id, embedding=[float(token) for token in request.prompt])]
        at = self._done[request.id]
        self._done[request.id] = at + 1
        last = at + 1 == request.params.max_tokens
        if last:
            del self._requests[request.id]
        token = request.prompt[at % len(request.prompt)]
        return [
            Delta(request.id, index, [token + index], finish_reason="length" if last else None)
            for index in sorted(self._open[request.id])
        ]

    def stats(self):
        held = sum(len(self._open[name]) for name in self._requests)
        return replace(self._stats, running=len(self._requests), free_blocks=BLOCKS - held)


def _prepare(prompt):
    """Takes as many tenths of a second as the second token says, and ends as the third one does."""
    time.sleep(prompt[1] / 10)
    if prompt[2] == REFUSE:
        raise RequestError("This grammar is refused; send another.")
    if prompt[2] == CRASH:
        raise ZeroDivisionError("in the middle of preparing")


def load(delay=0.002, rows=10**6, fail="", die_with=None, loading=0.0):
    """What the engine's process calls."""
    time.sleep(loading)
    if die_with is not None:
        os._exit(die_with)
    if fail:
        raise CheckpointError(fail)
    return EchoEngine(delay, rows), ModelInfo(name="echo", context=4096, vocabulary=1000)
