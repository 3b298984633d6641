"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

Library code reports progress always; nothing is shown until the command line calls :func:`show`.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_LINE_EVERY_SECONDS = 10.0
_console: Console | None = None


def show(console: Console | None) -> None:
    """Show progress on ``console`` from now on; on None it is not shown."""
    global _console
    _console = console


class Bar(Protocol):
    """What :func:`progress` yields."""

    def advance(self, n: int = 1, **info: object) -> None:
        """``n`` more units are done; ``info`` is shown beside the bar, e.g. ``loss="1.20"``."""


class _Silent:
    def advance(self, n: int = 1, **info: object) -> None:
        """Nothing to show."""


class _Counter:
    def __init__(self, total: int, unit: str, before: int) -> None:
        self.total, self.unit, self.before, self.done = total, unit, before, before
        self.start = time.monotonic()

    def describe(self, info: dict[str, object]) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        extra = "".join(f" · {name} {value}" for name, value in info.items())
        return f"{(self.done - self.before) / seconds:,.3g} {self.unit}/s{extra}"


class _TerminalBar(_Counter):
    def __init__(self, live: Progress, task: TaskID, total: int, unit: str, before: int) -> None:
        super().__init__(total, unit, before)
        self.live, self.task = live, task

    def advance(self, n: int = 1, **info: object) -> None:
        self.done += n
        self.live.update(self.task, advance=n, info=self.describe(info))


class _Lines(_Counter):
    def __init__(self, console: Console, label: str, total: int, unit: str, before: int) -> None:
        super().__init__(total, unit, before)
        self.console, self.label, self.last = console, label, time.monotonic()

    def advance(self, n: int = 1, **info: object) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last < _LINE_EVERY_SECONDS:
            return
        self.last = now
        left = (self.total - self.done) * (now - self.start) / max(self.done - self.before, 1)
        line = f"{self.label}: {self.done:,}/{self.total:,} {self.unit} · {self.describe(info)}"
        self.console.print(f"{line} · {left:.0f} s left", highlight=False, markup=False)


@contextmanager
def progress(label: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Bar]:
    """Report the progress of ``total`` units of work, of which ``done`` were finished before."""
    if _console is None:
        yield _Silent()
        return
    start = time.monotonic()
    if _console.is_terminal:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[info]}"),
        )
        with Progress(*columns, console=_console, transient=True) as live:
            task = live.add_task(label, total=max(total, 1), completed=done, info="")
            yield _TerminalBar(live, task, total, unit, done)
    else:
        bar = _Lines(_console, label, total, unit, done)
        yield bar
    seconds = time.monotonic() - start
    count = "" if total == 1 else f" · {total:,} {unit}"
    _console.print(f"[green]✓[/] {label}{count} in {seconds:.1f} s", highlight=False)


def track(
    items: Iterable[Item], label: str, total: int | None = None, unit: str = "items"
) -> Iterator[Item]:
    """Iterate over ``items`` and report progress; ``total`` is needed when they have no length."""
    count = len(items) if total is None else total  # type: ignore[arg-type]
    with progress(label, count, unit) as bar:
        for item in items:
            yield item
            bar.advance()
