"""A page that shows several runs side by side: their curves, scores, and settings that differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hone.core.files import write_text
from hone.evals import formatting
from hone.evals.charts import curves
from hone.evals.report import page_environment
from hone.evals.training_report import SERIES, series

_LOSSES = {"loss": ("Training loss", 1.0), "held_out_loss": ("Held-out loss", 1.0)}


def write_comparison(
    path: str | Path,
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    scores: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, Sequence[object]],
) -> None:
    """Write the page to ``path``, whole or not at all.

    Args:
        metrics: the lines of each run's ``metrics.jsonl``, by the run's name.
        scores: each run's figures on held-out data.
        differences: settings that differ, with the value in each run, in the order of ``metrics``.

    Raises:
        CapacityError: the disk is full.
        HoneError: ``path`` cannot be written.
    """
    pictures = []
    for key, (title, unit) in (_LOSSES | SERIES).items():
        drawn = {name: series(lines, key, unit) for name, lines in metrics.items()}
        if any(len(points) > 1 for points in drawn.values()):
            pictures.append((title, curves(drawn, title)))
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    page = (
        page_environment()
        .get_template("comparison.html.jinja")
        .render(
            runs=list(metrics),
            pictures=pictures,
            scores=[(name, [scores[run].get(name) for run in metrics]) for name in names],
            differences=differences,
        )
    )
    write_text(path, formatting.printable(page))
