"""What became of the examples of a tuning file: kept, shortened or dropped, and why."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Count:
    """How often something happened, and the line (or row) of the first time."""

    times: int
    first_line: int


@dataclass(slots=True)
class Report:
    """What became of the examples.

    Attributes:
        examples: how many were read.
        numbers: for each sample the example that it came from, from 1.
        lines: for each sample the line, or row of a table, that it came from; a line of JSON may
            hold many.
        lengths: for each sample its positions.
        trained: positions with a label, of all samples.
        truncated, dropped: reasons, with how often and where first. A dropped one is an answer, or
            an example without any.
        ends: how many answers end with each special token; serving must stop at these.
    """

    examples: int = 0
    numbers: array = field(default_factory=lambda: array("i"))
    lines: array = field(default_factory=lambda: array("i"))
    lengths: array = field(default_factory=lambda: array("i"))
    trained: int = 0
    truncated: dict[str, Count] = field(default_factory=dict)
    dropped: dict[str, Count] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """Positions of all samples."""
        return sum(self.lengths)

    def length_at(self, share: float) -> int:
        """The length that ``share`` of the samples do not exceed."""
        ordered = sorted(self.lengths)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0

    def sentences(self) -> list[str]:
        """A line per reason for which something was shortened or left out."""
        return [
            f"{what} {count.times:,} time{'s' * (count.times > 1)}, first at line "
            f"{count.first_line}: {reason}"
            for what, counts in (("shortened", self.truncated), ("dropped", self.dropped))
            for reason, count in counts.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""

        def counts(found: dict[str, Count]) -> dict[str, Any]:
            return {
                reason: {"times": count.times, "first_line": count.first_line}
                for reason, count in found.items()
            }

        return {
            "examples": self.examples,
            "samples": len(self.lines),
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "length": {
                "p50": self.length_at(0.5),
                "p95": self.length_at(0.95),
                "max": max(self.lengths, default=0),
            },
            "truncated": counts(self.truncated),
            "dropped": counts(self.dropped),
        }
