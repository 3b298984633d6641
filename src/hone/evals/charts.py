"""The reports' charts as inline SVG; colours are classes that the page's style sheet defines."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from hone.core.errors import DataError
from hone.evals.axes import HEIGHT, Axes
from hone.evals.intervals import Score
from hone.evals.records import json_lines

# As many as report.css.jinja has.
_COLOURS = 6
Point = tuple[int, float]  # step, loss

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
    last_step = finite[-1][0]
    axes = Axes(last_step, min(y for _, y in finite), max(y for _, y in finite))
    buckets = _buckets(finite)
    upper = axes.points([(step, high) for step, _, _, high in buckets])
    lower = axes.points([(step, low) for step, low, _, _ in buckets])
    line = axes.points([(step, mean) for step, _, mean, _ in buckets])
    (first_step, first_loss), last_loss = finite[0], buckets[-1][2]
    label = (
        f"Training loss over {last_step:,} steps: from {first_loss:.3g} at step {first_step:,} "
        f"to {last_loss:.3g} at the end."
    )
    return Markup(
        '<svg class="loss" role="img" aria-label="{label}" height="{height}">{grid}'
        '<svg width="100%" height="{height}" viewBox="0 0 1000 {height}" '
        'preserveAspectRatio="none"><polygon class="band" points="{band}"/>'
        '<polyline class="line" points="{line}" vector-effect="non-scaling-stroke"/></svg>'
        '<text class="tick last" x="100%" y="{last_y:.1f}" text-anchor="end">{last:.3g}</text>'
        "</svg>"
    ).format(
        label=label,
        height=HEIGHT,
        grid=axes.grid(),
        band=" ".join(upper + lower[::-1]),
        line=" ".join(line),
        last=last_loss,
        last_y=axes.down(buckets[-1][3]) - 8,
    )


def curves(named: Mapping[str, Sequence[Point]], what: str) -> Markup:
    """Several series of one quantity in one picture, with a legend where there are several.

    Args:
        named: the points of each series; one has the same colour in all pictures of the same names.
        what: the quantity and its unit, for those who cannot see the picture.
    """
    drawn = {
        name: [point for point in points if math.isfinite(point[1])]
        for name, points in named.items()
    }
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    if not drawn:
        return Markup('<p class="note">Nothing to draw: fewer than two points were logged.</p>')
    values = [value for points in drawn.values() for _, value in points]
    axes = Axes(max(points[-1][0] for points in drawn.values()), min(values), max(values))
    looks = {name: _look(number) for number, name in enumerate(named)}
    lines = Markup("").join(
        Markup('<polyline {look} points="{p}" vector-effect="non-scaling-stroke"/>').format(
            look=looks[name],
            p=" ".join(axes.points([(step, mean) for step, _, mean, _ in _buckets(points)])),
        )
        for name, points in drawn.items()
    )
    picture = Markup(
        '<svg class="loss" role="img" aria-label="{label}" height="{height}">{grid}'
        '<svg width="100%" height="{height}" viewBox="0 0 1000 {height}" '
        'preserveAspectRatio="none">{lines}</svg></svg>'
    ).format(label=f"{what}: {', '.join(drawn)}.", height=HEIGHT, grid=axes.grid(), lines=lines)
    if len(drawn) == 1:
        return picture
    items = Markup("").join(
        Markup(
            '<li><svg width="26" height="12"><line {look} x1="0" x2="26" y1="6" y2="6"/></svg>'
            "{name}</li>"
        ).format(look=looks[name], name=name)
        for name in drawn
    )
    return picture + Markup('<ul class="legend">{}</ul>').format(items)


def _look(number: int) -> Markup:
    """The colour of a series; when the colours are used up, they come again with dashes."""
    turn, colour = divmod(number, _COLOURS)
    dashes = Markup(' stroke-dasharray="{} 4"').format(10 // turn) if turn else Markup("")
    return Markup('class="line series-{}"{}').format(colour, dashes)


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
