import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.evals.intervals import Score, wilson

pytestmark = pytest.mark.smoke


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine
# 17 (1998), table I, method 3 (Wilson score without continuity correction).
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_table(correct, n, low, high):
    assert wilson(correct, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_nothing_is_known_without_items():
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Score(0, 0).value)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_an_interval_around_the_share_and_mirrors_itself(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0.0 <= low <= correct / n <= high <= 1.0
    mirrored = wilson(n - correct, n)
    assert mirrored == (pytest.approx(1 - high, abs=1e-12), pytest.approx(1 - low, abs=1e-12))


def test_score_counts():
    score = Score.of([True, False, True, True])
    assert (score.correct, score.n, score.value) == (3, 4, 0.75)
    assert score.interval == wilson(3, 4)
