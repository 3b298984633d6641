"""Proportions with their uncertainty."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z95 = 1.959963984540054  # the 97.5th percentile of the standard normal


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of ``correct`` out of ``n`` (E. B. Wilson, JASA 22, 1927).

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage near 0 and 1,
    where a good model's accuracy is. Without items nothing is known: (0, 1).
    """
    assert 0 <= correct <= n, f"{correct} correct out of {n}"
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # At the ends the exact bound is 0 or 1; rounding may miss it by one unit in the last place.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True, slots=True)
class Score:
    """``correct`` items out of ``n``."""

    correct: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Score":
        """Count ``outcomes``."""
        listed = list(outcomes)
        return cls(sum(listed), len(listed))

    @property
    def value(self) -> float:
        """The share that is correct, in [0, 1]; NaN without items."""
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of :attr:`value`."""
        return wilson(self.correct, self.n)
