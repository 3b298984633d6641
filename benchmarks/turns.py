"""Contenders in processes of their own, which take steps in turn: another load hits all alike."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Contender = Callable[[Connection, str, Any], None]


class Turns:
    """Processes that have started, and wait to be told to step."""

    def __init__(self, contender: Contender, names: list[str], job: Any) -> None:
        """Start ``contender(connection, name, job)`` for each name, one after the other.

        A contender sends a message when it is ready; it gets ``True`` for every step, which it
        answers, and ``False`` at the end.
        """
        context = multiprocessing.get_context("spawn")
        self.started: list[Any] = []
        self._lines, self._processes = [], []
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=contender, args=(there, name, job), daemon=True)
            process.start()
            there.close()
            print(f"starting {name} ...", file=sys.stderr, flush=True)
            self.started.append(here.recv())
            self._lines.append(here)
            self._processes.append(process)

    def step(self, times: int) -> list[list[Any]]:
        """Let each step so often, in turn; returns the answers of each."""
        answers: list[list[Any]] = [[] for _ in self._lines]
        for _ in range(times):
            for line, taken in zip(self._lines, answers, strict=True):
                line.send(True)
                taken.append(line.recv())
        return answers

    def end(self) -> None:
        """Tell all that it is over, and wait for them."""
        for line, process in zip(self._lines, self._processes, strict=True):
            line.send(False)
            process.join()
