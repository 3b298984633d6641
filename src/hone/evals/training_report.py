"""``report.html`` of a training run: what was chosen, how it went, what it changed.

Like the Text2SQL report one file, without network or script, everything escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hone.core.files import write_text
from hone.evals import formatting
from hone.evals.charts import Point, curves
from hone.evals.records import json_lines
from hone.evals.report import page_environment, setting_sections

# What metrics.jsonl may hold, how a page calls it, and the unit that it is shown in.
SERIES = {
    "lr": ("Learning rate", 1.0),
    "tokens_per_second": ("Tokens per second", 1.0),
    "grad_norm": ("Norm of the gradient", 1.0),
    "memory_bytes": ("Memory in GB", 1e9),
}


_SAMPLES = 6  # steps of which a page shows texts


@dataclass(frozen=True, slots=True)
class Answer:
    """One held-out prompt with what was wanted, and what the model wrote before and after."""

    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Everything that the page shows.

    Attributes:
        title: what was trained.
        summary: a sentence on what was done.
        scores: figures on held-out data by name: (before, after); None where one was not measured.
        better: of each score, whether more is better.
        choices: what was chosen, with the value and the reason.
        metrics: the lines of ``metrics.jsonl``.
        counts: figures of the run by name, e.g. of trained tokens or skipped steps.
        memory: the parts of the predicted peak in bytes by name.
        predicted, measured: peak bytes; None where there is none.
        sample: pieces of one training sample in order, with whether they are trained.
        answers: held-out prompts.
        settings: shown as tables.
        next_commands: what to type next.
    """

    title: str
    summary: str
    scores: Mapping[str, tuple[float | None, float | None]]
    better: Mapping[str, bool]
    choices: Sequence[tuple[str, str, str]]
    metrics: Sequence[Mapping[str, Any]]
    counts: Mapping[str, str]
    memory: Mapping[str, int] = field(default_factory=dict)
    predicted: int | None = None
    measured: int | None = None
    sample: Sequence[tuple[str, bool]] = ()
    answers: Sequence[Answer] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    next_commands: Sequence[str] = ()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``.

    Raises:
        DataError: the file is missing, or a line is not JSON.
    """
    return [line for _, line in json_lines(path) if isinstance(line, dict)]


def series(metrics: Sequence[Mapping[str, Any]], key: str, unit: float = 1.0) -> list[Point]:
    """(step, value) of every line that has a number under ``key``, counted in ``unit``."""
    return [
        (int(line["step"]), float(line[key]) / unit)
        for line in metrics
        if "step" in line and isinstance(line.get(key), int | float)
    ]


def write_training_report(path: str | Path, report: TrainingReport) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        CapacityError: the disk is full.
        HoneError: ``path`` cannot be written.
    """
    write_text(path, render_training_report(report))


def render_training_report(report: TrainingReport) -> str:
    """The page as HTML text."""
    losses = {
        "training": series(report.metrics, "loss"),
        "held out": series(report.metrics, "held_out_loss"),
    }
    more = [
        (title, curves({title: points}, title))
        for key, (title, unit) in SERIES.items()
        if len(points := series(report.metrics, key, unit)) > 1
    ]
    largest = max(report.memory.values(), default=0)
    page = (
        page_environment()
        .get_template("training.html.jinja")
        .render(
            report=report,
            loss=curves({name: points for name, points in losses.items() if points}, "Loss"),
            curves=more,
            scores=[_score(report, name) for name in report.scores],
            memory=[(name, size, _bar(size, largest)) for name, size in report.memory.items()],
            samples=_samples(report.metrics),
            settings=setting_sections(report.settings),
        )
    )
    return formatting.printable(page)


def _samples(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[dict[str, str]]]]:
    """What was written along the way, at a few steps from the first to the last."""
    found = [(int(line["step"]), line["samples"]) for line in metrics if "samples" in line]
    if len(found) <= _SAMPLES:
        return found
    return [found[round(n * (len(found) - 1) / (_SAMPLES - 1))] for n in range(_SAMPLES)]


def _score(report: TrainingReport, name: str) -> dict[str, object]:
    before, after = report.scores[name]
    verdict = ""
    if before is not None and after is not None and before != after:
        verdict = "ok" if (after > before) == report.better.get(name, True) else "bad"
    return {"name": name, "before": before, "after": after, "verdict": verdict}


def _bar(size: int, largest: int) -> Markup:
    share = 100 * size / largest if largest else 0
    return Markup(
        '<svg class="bar" height="20" aria-hidden="true"><rect class="track" width="100%" y="5" '
        'height="10" rx="2"/><rect class="fill" width="{:.2f}%" y="5" height="10" rx="2"/></svg>'
    ).format(share)
