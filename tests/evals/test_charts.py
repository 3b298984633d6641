import re
from itertools import pairwise

import pytest

from hone.evals.charts import accuracy_bar, loss_curve
from hone.evals.intervals import Score

pytestmark = pytest.mark.smoke


def numbers(svg, name):
    (points,) = re.findall(rf'class="{name}" points="([^"]*)"', svg)
    return [tuple(map(float, pair.split(","))) for pair in points.split()]


def test_curve_goes_from_the_first_step_to_the_last():
    svg = loss_curve([(step, 8.0 / step) for step in range(1, 1001)])
    line = numbers(svg, "line")
    assert len(line) <= 150
    assert line[0][0] < 10
    assert line[-1][0] == pytest.approx(1000, abs=10)
    assert all(after[1] >= before[1] for before, after in pairwise(line))
    assert all(0 <= x <= 1000 and 0 <= y <= 280 for x, y in line + numbers(svg, "band"))
    assert 'aria-label="Training loss over 1,000 steps: from 8 at step 1 to 0.008' in svg


def test_axis_is_logarithmic_only_where_the_loss_falls_far():
    linear = loss_curve([(1, 3.0), (2, 2.0), (3, 1.5)])
    assert re.findall(r'text-anchor="end">([\d.]+)</text>', linear)[:2] == ["0", "1"]
    logarithmic = loss_curve([(1, 8.0), (2, 1.0), (3, 0.01)])
    ticks = re.findall(r'x="-8"[^>]*>([\d.e-]+)</text>', logarithmic)
    assert ticks == ["0.01", "0.03", "0.1", "0.3", "1", "3"]


@pytest.mark.parametrize(
    "points",
    [[], [(1, 2.0)], [(1, float("nan")), (2, float("inf"))]],
)
def test_too_little_for_a_curve(points):
    assert "No loss curve" in loss_curve(points)


@pytest.mark.parametrize(
    "points",
    [
        [(1, 0.0), (2, 0.0)],
        [(5, 1.0), (6, 1.0)],
        [(1, -1.0), (2, 3.0)],
        [(0, 1.0), (0, 2.0)],
        [(1, 1e30), (2, 1e-30)],
        [(1, 2.0), (2, float("nan")), (3, 1.0)],
    ],
)
def test_odd_losses_still_draw(points):
    svg = loss_curve(points)
    assert "nan" not in svg
    assert numbers(svg, "line")


def test_bar_shows_share_interval_and_goal():
    svg = accuracy_bar(Score(8, 10), goal=0.95)
    assert 'class="fill" width="80.00%"' in svg
    assert 'x1="49.02%" x2="94.33%"' in svg  # Wilson, 8 of 10
    assert 'class="goal" x1="95.00%"' in svg
    assert 'aria-hidden="true"' in svg


def test_bar_without_items_is_empty():
    assert 'class="fill" width="0.00%"' in accuracy_bar(Score(0, 0))
