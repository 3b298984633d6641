"""Which questions the terminal and the report show, and why a wrong one is wrong."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

from hone.core.seeds import rng
from hone.evals.records import Scored
from hone.evals.summary import LANGUAGES

FailureKind = Literal[
    "does not run", "same clauses, other values", "another query", "unusable gold"
]
FAILURE_KINDS: tuple[FailureKind, ...] = (
    "does not run",
    "same clauses, other values",
    "another query",
    "unusable gold",
)


def failure_kind(record: Scored) -> FailureKind | None:
    """Why ``record`` counts as wrong; None if it is right."""
    if record.ok:
        return None
    if record.gold_error is not None:
        return "unusable gold"
    if record.error is not None:
        return "does not run"
    return "same clauses, other values" if record.exact else "another query"


def _spread(records: Iterable[Scored], group: Callable[[Scored], Hashable]) -> list[Scored]:
    """Reorder so that every group has its first item before any has its second, and so on."""
    groups: dict[Hashable, list[Scored]] = {}
    for record in records:
        groups.setdefault(group(record), []).append(record)
    order = []
    while groups:
        for key in list(groups):
            order.append(groups[key].pop(0))
            if not groups[key]:
                del groups[key]
    return order


def choose_samples(records: Sequence[Scored], per_language: int, seed: int = 0) -> list[Scored]:
    """Up to ``per_language`` questions of each language, drawn without looking at the answers.

    They are spread over the held-out sets and hardnesses; the same records and seed give the same
    choice. Korean comes first, then English, then other languages by name.
    """
    present = {record.language for record in records}
    languages = [name for name in LANGUAGES if name in present]
    languages += sorted(present - set(languages))
    chosen = []
    for language in languages:
        # A question that stands in the records twice is shown once.
        pool = list({r.question: r for r in records if r.language == language}.values())
        rng(seed, "samples", language).shuffle(pool)
        chosen += _spread(pool, lambda record: (record.split, record.hardness))[:per_language]
    return chosen


def choose_failures(records: Sequence[Scored], limit: int) -> list[Scored]:
    """Up to ``limit`` wrong answers, spread over held-out sets, languages and kinds of failure."""
    wrong = [record for record in records if not record.ok]
    return _spread(wrong, lambda r: (r.split, r.language, failure_kind(r)))[:limit]
