"""The report's charts as inline SVG.

Positions across are percentages and sizes of text are pixels, so a chart fills a wide screen and a
phone alike and its words never shrink. Colours are classes that the page's style sheet defines.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from hone.core.errors import DataError
from hone.evals.intervals import Score
from hone.evals.records import json_lines

Point = tuple[int, float]  # step, loss

_HEIGHT, _TOP, _BOTTOM = 280, 12, 246  # of the loss curve, pixels
_MOST_BUCKETS = 150


def read_losses(path: str | Path) -> tuple[Point, ...]:
    """The training loss of every step in a ``metrics.jsonl``: nats per trained token.

    Lines without a ``loss`` (a run may log other events) are passed over.

    Raises:
        DataError: the file is missing, or a line is not JSON or has no usable step and loss.
    """
    points = []
    for number, line in json_lines(path):
        if not isinstance(line, dict):
            raise DataError(f"{path}, line {number}: expected an object with step and loss.")
        if line.get("loss") is None:  # an evaluation, or steps that trained no token
            continue
        try:
            points.append((int(line["step"]), float(line["loss"])))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: step and loss must be numbers, found {line!r:.80}."
            ) from error
    return tuple(points)


def _nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers in [low, high], evenly spaced."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 7)]


def _buckets(points: Sequence[Point]) -> list[tuple[float, float, float, float]]:
    """Mean step, lowest, mean and highest loss of up to ``_MOST_BUCKETS`` runs of steps."""
    width = math.ceil(len(points) / _MOST_BUCKETS)
    found = []
    for start in range(0, len(points), width):
        steps, losses = zip(*points[start : start + width], strict=True)
        found.append((fmean(steps), min(losses), fmean(losses), max(losses)))
    return found


def loss_curve(points: Sequence[Point]) -> Markup:
    """The training loss over the steps; a logarithmic axis where the loss falls more than tenfold.

    The band spans the lowest and the highest loss of neighbouring steps, the line is their mean.
    """
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) < 2:
        return Markup('<p class="note">No loss curve: fewer than two steps were logged.</p>')
    lowest, highest = min(loss for _, loss in finite), max(loss for _, loss in finite)
    logarithmic = lowest > 0 and highest / lowest > 10
    if logarithmic:
        floor, ceiling = lowest / 1.1, highest * 1.1
        ticks = _log_ticks(floor, ceiling)
    else:
        floor, ceiling = min(0.0, lowest), highest * 1.02 if highest > 0 else highest + 1.0
        ticks = _nice_ticks(floor, ceiling, 5)
    last_step = finite[-1][0]

    def across(step: float) -> float:
        return 100 * step / max(last_step, 1)

    def down(loss: float) -> float:
        if logarithmic:
            share = math.log(ceiling / loss) / math.log(ceiling / floor)
        else:
            share = (ceiling - loss) / (ceiling - floor)
        return _TOP + share * (_BOTTOM - _TOP)

    buckets = _buckets(finite)
    upper = [f"{across(step) * 10:.1f},{down(high):.1f}" for step, _, _, high in buckets]
    lower = [f"{across(step) * 10:.1f},{down(low):.1f}" for step, low, _, _ in buckets]
    line = [f"{across(step) * 10:.1f},{down(mean):.1f}" for step, _, mean, _ in buckets]
    grid = Markup("").join(
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            '<text class="tick" x="-8" y="{text:.1f}" text-anchor="end">{label}</text>'
        ).format(y=down(tick), text=down(tick) + 4, label=f"{tick:.4g}")
        for tick in ticks
    )
    steps = [int(step) for step in _nice_ticks(0, last_step, 4) if float(step).is_integer()]
    marks = Markup("").join(
        Markup(
            '<text class="tick" x="{x:.2f}%" y="{y}" text-anchor="{anchor}">{step:,}</text>'
        ).format(
            x=across(step),
            y=_BOTTOM + 20,
            anchor="start" if step == 0 else "end" if across(step) > 97 else "middle",
            step=step,
        )
        for step in steps
    )
    (first_step, first_loss), last_loss = finite[0], buckets[-1][2]
    label = (
        f"Training loss over {last_step:,} steps: from {first_loss:.3g} at step {first_step:,} "
        f"to {last_loss:.3g} at the end."
    )
    return Markup(
        '<svg class="loss" role="img" aria-label="{label}" height="{height}">{grid}{marks}'
        '<svg width="100%" height="{height}" viewBox="0 0 1000 {height}" '
        'preserveAspectRatio="none"><polygon class="band" points="{band}"/>'
        '<polyline class="line" points="{line}" vector-effect="non-scaling-stroke"/></svg>'
        '<text class="tick last" x="100%" y="{last_y:.1f}" text-anchor="end">{last:.3g}</text>'
        "</svg>"
    ).format(
        label=label,
        height=_HEIGHT,
        grid=grid,
        marks=marks,
        band=" ".join(upper + lower[::-1]),
        line=" ".join(line),
        last=last_loss,
        last_y=down(buckets[-1][3]) - 8,
    )


def accuracy_bar(score: Score, goal: float | None = None) -> Markup:
    """One bar from 0 to 100%: the share, its 95% interval as a whisker, a goal as a dashed line.

    Hidden from screen readers: the figures stand beside it in the same table row.
    """
    low, high = (f"{100 * bound:.2f}%" for bound in score.interval)
    bar = Markup(
        '<rect class="track" width="100%" y="5" height="10" rx="2"/>'
        '<rect class="fill" width="{share:.2f}%" y="5" height="10" rx="2"/>'
        '<line class="whisker" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="whisker" x1="{low}" x2="{low}" y1="6" y2="14"/>'
        '<line class="whisker" x1="{high}" x2="{high}" y1="6" y2="14"/>'
    ).format(share=100 * score.value if score.n else 0, low=low, high=high)
    if goal is not None:
        line = Markup('<line class="goal" x1="{x:.2f}%" x2="{x:.2f}%" y1="-1" y2="21"/>')
        bar += line.format(x=100 * goal)
    return Markup('<svg class="bar" height="20" aria-hidden="true">{}</svg>').format(bar)
