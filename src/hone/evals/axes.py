"""The axes of charts over steps: ticks at round numbers, and where a value lies.

Positions across are percentages and sizes of text are pixels, so a chart fills a wide screen and a
phone alike and its words never shrink.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from hone.evals.formatting import quantity

HEIGHT, _TOP, _BOTTOM = 280, 12, 246  # pixels


class Axes:
    """Steps across, a value upwards; logarithmic where the values differ more than tenfold."""

    def __init__(self, last_step: int, lowest: float, highest: float, first_step: int = 0) -> None:
        """Axes for steps up to ``last_step`` and values from ``lowest`` to ``highest``."""
        self.first_step, self.last_step = first_step, last_step
        self._logarithmic = lowest > 0 and highest / lowest > 10
        if self._logarithmic:
            self._floor, self._ceiling = lowest / 1.1, highest * 1.1
            self._ticks = _log_ticks(self._floor, self._ceiling)
        else:
            self._floor = min(0.0, lowest)
            self._ceiling = highest * 1.02 if highest > 0 else highest + 1.0
            self._ticks = nice_ticks(self._floor, self._ceiling, 5)

    def across(self, step: float) -> float:
        """Where ``step`` lies, in percent of the width."""
        return 100 * (step - self.first_step) / max(self.last_step - self.first_step, 1)

    def down(self, value: float) -> float:
        """Where ``value`` lies, in pixels from the top."""
        if self._logarithmic:
            share = math.log(self._ceiling / value) / math.log(self._ceiling / self._floor)
        else:
            share = (self._ceiling - value) / (self._ceiling - self._floor)
        return _TOP + share * (_BOTTOM - _TOP)

    def points(self, places: Sequence[tuple[float, float]]) -> list[str]:
        """``x,y`` of each (step, value), in a box 1000 wide."""
        return [f"{self.across(x) * 10:.1f},{self.down(y):.1f}" for x, y in places]

    def grid(self) -> Markup:
        """Lines and numbers of the values, and numbers of the steps."""
        lines = Markup("").join(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="-8" y="{text:.1f}" text-anchor="end">{label}</text>'
            ).format(y=self.down(tick), text=self.down(tick) + 4, label=_label(tick))
            for tick in self._ticks
        )
        steps = nice_ticks(self.first_step, self.last_step, 4)
        marks = Markup("").join(
            Markup(
                '<text class="tick" x="{x:.2f}%" y="{y}" text-anchor="{anchor}">{step:,}</text>'
            ).format(
                x=self.across(step),
                y=_BOTTOM + 20,
                anchor=self._anchor(step),
                step=int(step),
            )
            for step in steps
            if float(step).is_integer()
        )
        return lines + marks

    def _anchor(self, step: float) -> str:
        place = self.across(step)
        return "start" if place == 0 else "end" if place > 97 else "middle"


def _label(tick: float) -> str:
    return quantity(round(tick)) if tick >= 10_000 else f"{tick:.4g}"


def nice_ticks(low: float, high: float, count: int) -> list[float]:
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
