"""A plan as a picture: one stacked bar, the device's memory, and what would make it fit."""

from pathlib import Path
from typing import Any

from hone.core.errors import ConfigError
from hone.core.files import atomic_path
from hone.plan.planner import Plan
from hone.plan.show import size

FORMATS = (".svg", ".png", ".pdf")
# A limit of more than so many times the peak is named and not drawn.
_FAR = 2
_LABEL = 0.045  # share of the width that "100%" needs
_COLOURS = {
    "weights": "#4C72B0",
    "quantization constants": "#8DA0CB",
    "adapters": "#64B5CD",
    "float32 masters": "#2F4B7C",
    "gradients": "#DD8452",
    "optimizer state": "#C44E52",
    "mean of weights": "#937860",
    "activations": "#55A868",
    "logits and loss": "#CCB974",
    "logits": "#CCB974",
    "working memory": "#8C8C8C",
    "batch": "#DA8BC3",
    "keys and values": "#55A868",
    "states": "#8172B3",
}


def draw(plan: Plan, file: Path, title: str) -> None:
    """Write the picture to ``file``.

    Raises:
        ConfigError: another kind of file is asked for.
    """
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{file} is not the name of a picture; end it in one of {', '.join(FORMATS)}."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    changes = plan.changes()
    figure = Figure(figsize=(9, 2.6 + 0.45 * len(changes)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit, name = _unit(plan.peak)
    usable = plan.device.usable
    # The bars fill the width; a limit far beyond them would leave nothing to see of them.
    near = usable <= plan.peak * _FAR
    right = 1.04 * max(plan.peak, usable if near else 0) / unit
    axes.set_xlim(0, right)
    axes.set_ylim(-len(changes) - 0.6, 0.95)
    _bars(axes, plan, unit)
    for row, change in enumerate(changes, 1):
        axes.barh(-row, change.peak / unit, color="#B7C9B0", height=0.55)
        cost = f"{size(change.peak)}, {change.slowdown:.2f}× the time per token"
        label = f" {' + '.join(change.steps)}: {cost}"
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8}
        axes.text(0, -row, label, va="center", fontsize=8, bbox=backing)
    limit = f"{plan.device.name}: {size(usable)}"
    if near:
        axes.axvline(usable / unit, color="#333333", linestyle="--", linewidth=1.2)
        left = usable / unit < right / 2
        words = f" {limit}" if left else f"{limit} "
        axes.text(usable / unit, 0.62, words, fontsize=8, ha="left" if left else "right")
    else:
        axes.text(right, 0.62, f"{limit} →", fontsize=8, ha="right")
    axes.set_yticks([])
    axes.set_xlabel(name)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    verdict = "fits" if plan.fits else "does not fit"
    axes.set_title(f"{title}: {size(plan.peak)} at the peak, {verdict}", fontsize=10, loc="left")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=150)


def _unit(peak: int) -> tuple[float, str]:
    """The unit of the axis: that of the peak."""
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if peak >= scale:
            return scale, name
    return 1e3, "kB"


def _bars(axes: Any, plan: Plan, unit: float) -> None:
    left, peak = 0.0, plan.peak
    room = _LABEL * axes.get_xlim()[1]
    for name, count in plan.parts.items():
        width = count / unit
        axes.barh(
            0,
            width,
            left=left,
            height=0.75,
            color=_COLOURS.get(name, "#AAAAAA"),
            label=f"{name} {size(count)}",
        )
        if width > room:
            axes.text(
                left + width / 2,
                0,
                f"{count / peak:.0%}",
                ha="center",
                va="center",
                color="white",
                fontsize=8,
            )
        left += width
