"""A measured load as a picture: how long people waited, and what came out over time."""

from pathlib import Path
from typing import Any

import numpy as np

from hone.core.errors import ConfigError
from hone.core.files import atomic_path
from hone.serve.bench import Measured
from hone.serve.bench_report import Limits, Report

FORMATS = (".svg", ".png", ".pdf")
_BLUE, _GREEN, _RED, _GREY = "#4C72B0", "#55A868", "#C44E52", "#8C8C8C"
_MOMENTS = 80  # points of the lines over time


def check_name(file: Path) -> None:
    """Raises ConfigError when ``file`` is not the name of a picture."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{file} is not the name of a picture; end it in one of {', '.join(FORMATS)}."
        )


def draw(measured: Measured, report: Report, file: Path, title: str) -> None:
    """Write the picture to ``file``.

    Raises:
        ConfigError: another kind of file is asked for.
    """
    check_name(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplot_mosaic([["ttft", "itl"], ["time", "time"]])
    limits = report.limits
    whole = [answer for answer in measured.answers if answer.whole]
    first = [answer.ttft for answer in whole]
    gaps = [np.diff(answer.times) for answer in whole]
    between = np.concatenate(gaps) if gaps else np.array([])
    _shares(places["ttft"], np.array(first), limits.ttft, "time to the first token")
    _shares(places["itl"], between, None, "time between pieces of a stream")
    if limits.itl is not None:
        means = np.array([answer.per_token for answer in whole if answer.tokens > 1])
        _line(places["itl"], means, _GREEN, "mean of each request")
        _limit(places["itl"], limits.itl)
    for name in ("ttft", "itl"):
        if places[name].get_legend_handles_labels()[0]:
            places[name].legend(fontsize=8, frameon=False, loc="upper left")
    _over_time(places["time"], measured)
    figure.suptitle(f"{title}\n{_sentence(report)}", fontsize=10, x=0.01, ha="left")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=130)


def _sentence(report: Report) -> str:
    good = f", {report.goodput:.2f} of them good" if report.limits != Limits() else ""
    return (
        f"{report.output_rate:,.0f} tokens/s, {report.request_rate:.2f} requests/s{good}; "
        f"{report.whole} whole, {report.refused} refused, {sum(report.errors.values())} failed"
    )


def _shares(axes: Any, seconds: Any, limit: float | None, name: str) -> None:
    """The share of all that took no longer."""
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _line(axes, seconds, _BLUE, "all")
    if len(seconds):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: _duration(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlim(np.percentile(seconds, 1) / 1.5, np.max(seconds) * 1.2)
        told = zip((50, 95, 99), np.percentile(seconds, (50, 95, 99)), strict=True)
        name += ": " + ", ".join(f"p{share} {_duration(value)}" for share, value in told)
    axes.set_title(name, fontsize=9, loc="left")
    if limit is not None:
        _limit(axes, limit)


def _line(axes: Any, seconds: Any, colour: str, name: str) -> None:
    if len(seconds):
        ordered = np.sort(seconds)
        axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), color=colour, label=name)


def _limit(axes: Any, seconds: float) -> None:
    axes.axvline(
        seconds, color=_RED, linestyle="--", linewidth=1.2, label=f"wanted: {_duration(seconds)}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _over_time(axes: Any, measured: Measured) -> None:
    """Tokens per second, and the streams that run; refusals and failures as marks below."""
    edges = np.linspace(0.0, max(measured.seconds, 1e-3), _MOMENTS + 1)
    width = edges[1] - edges[0]
    tokens = np.zeros(_MOMENTS)
    running = np.zeros(_MOMENTS)
    for answer in measured.answers:
        if answer.times:
            counts, _ = np.histogram(answer.times, edges)
            tokens += counts * (answer.tokens / len(answer.times))
        end = measured.seconds if answer.end is None else answer.end
        overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], answer.start)
        running += np.clip(overlap, 0, None) / width
    middles = (edges[:-1] + edges[1:]) / 2
    axes.plot(middles, tokens / width, color=_BLUE, label="tokens per second")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel("tokens per second", fontsize=9, color=_BLUE)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    for trouble, colour, name in (("429", _GREY, "refused"), ("", _RED, "failed")):
        moments = [
            answer.end
            for answer in measured.answers
            if answer.end is not None
            and answer.trouble
            and answer.trouble != "vanished"
            and (answer.trouble == "429") == (trouble == "429")
        ]
        if moments:
            axes.plot(moments, [0] * len(moments), "|", color=colour, markersize=12, label=name)
    right = axes.twinx()
    right.plot(middles, running, color=_GREEN, linewidth=1, label="requests under way")
    right.set_ylim(bottom=0)
    right.set_ylabel("requests under way", fontsize=9, color=_GREEN)
    right.tick_params(labelsize=8)
    for each in (axes, right):
        each.spines["top"].set_visible(False)
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    names = [line.get_label() for line in lines]
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    axes.legend(lines, names, fontsize=8, frameon=False, ncols=4, **above)
