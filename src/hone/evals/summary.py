"""Counts by held-out set, language and hardness, and the figures for programs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hone.evals.intervals import Score
from hone.evals.records import Scored

ALL = "all"
LANGUAGES = ("ko", "en")
HARDNESSES = ("easy", "medium", "hard", "extra")
Metric = Literal["execution_accuracy", "exact_match"]
METRICS: tuple[Metric, ...] = ("execution_accuracy", "exact_match")


def is_correct(record: Scored, metric: Metric) -> bool:
    """Whether ``record`` counts as correct under ``metric``."""
    return record.ok if metric == "execution_accuracy" else record.exact


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The scores of one held-out set; groups without items are left out.

    Both mappings begin with ``all`` and go on in the usual order (ko, en; easy to extra).
    """

    language: Mapping[str, Score]
    hardness: Mapping[str, Score]

    @property
    def all(self) -> Score:
        """Every item of the set."""
        return self.language[ALL]


def _grouped(
    records: Sequence[Scored], metric: Metric, key: Callable[[Scored], str], order: Iterable[str]
) -> dict[str, Score]:
    outcomes: dict[str, list[bool]] = {name: [] for name in (ALL, *order)}
    for record in records:
        correct = is_correct(record, metric)
        outcomes[ALL].append(correct)
        outcomes.setdefault(key(record), []).append(correct)
    return {name: Score.of(found) for name, found in outcomes.items() if found or name == ALL}


def splits(records: Iterable[Scored]) -> tuple[str, ...]:
    """The names of the held-out sets, in the order in which they first occur."""
    return tuple(dict.fromkeys(record.split for record in records))


def summarize(records: Sequence[Scored], metric: Metric) -> dict[str, Breakdown]:
    """The :class:`Breakdown` of every held-out set in ``records`` under ``metric``."""
    summary = {}
    for split in splits(records):
        chosen = [record for record in records if record.split == split]
        summary[split] = Breakdown(
            language=_grouped(chosen, metric, lambda record: record.language, LANGUAGES),
            hardness=_grouped(chosen, metric, lambda record: record.hardness, HARDNESSES),
        )
    return summary


def by_pattern(records: Iterable[Scored]) -> dict[str, Score]:
    """Execution accuracy of every named sentence pattern, weakest first."""
    outcomes: dict[str, list[bool]] = {}
    for record in records:
        if record.pattern:
            outcomes.setdefault(record.pattern, []).append(record.ok)
    scores = {pattern: Score.of(found) for pattern, found in outcomes.items()}
    return dict(sorted(scores.items(), key=lambda item: (item[1].value, -item[1].n, item[0])))


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of the model, as it was measured.

    Attributes:
        name: what people call it, e.g. ``fp32`` or ``int8``.
        bytes: size of its weights on the disk.
        tokens_per_second: generated tokens per second while answering ``records``.
    """

    name: str
    records: tuple[Scored, ...]
    bytes: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Changes:
    """How the answers of a compressed model differ from the original's, question by question."""

    n: int
    same_sql: int
    gained: int
    lost: int


def changes(original: Variant, other: Variant) -> Changes:
    """Compare two variants that answered the same questions in the same order."""
    pairs = list(zip(original.records, other.records, strict=True))
    assert all((a.question, a.gold) == (b.question, b.gold) for a, b in pairs)
    return Changes(
        n=len(pairs),
        same_sql=sum(a.predicted == b.predicted for a, b in pairs),
        gained=sum(b.ok and not a.ok for a, b in pairs),
        lost=sum(a.ok and not b.ok for a, b in pairs),
    )


def _figures(variant: Variant) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for metric in METRICS:
        summary = summarize(variant.records, metric)
        figures[metric] = {
            split: {name: round(score.value, 6) for name, score in breakdown.language.items()}
            for split, breakdown in summary.items()
        }
        intervals[metric] = {
            split: {
                name: [round(bound, 6) for bound in score.interval]
                for name, score in breakdown.language.items()
            }
            for split, breakdown in summary.items()
        }
    figures["bytes"] = variant.bytes
    figures["tokens_per_second"] = round(variant.tokens_per_second, 3)
    figures["items"] = {
        split: {name: score.n for name, score in breakdown.language.items()}
        for split, breakdown in summarize(variant.records, "execution_accuracy").items()
    }
    figures["intervals"] = intervals
    return figures


def results(
    model: Variant,
    int8: Variant | None = None,
    *,
    seconds: Mapping[str, float],
    parameters: int,
) -> dict[str, Any]:
    """The content of ``results.json``.

    ``seconds`` holds at least ``train`` and ``total``. Shares are in [0, 1]; languages without
    items are left out; ``int8``, if there is one, has the same keys as the model itself.
    """
    figures = _figures(model)
    items, intervals = figures.pop("items"), figures.pop("intervals")
    if int8 is not None:
        figures["int8"] = _figures(int8)
    figures["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    figures["parameters"] = parameters
    figures["items"] = items
    figures["intervals"] = intervals
    return figures
