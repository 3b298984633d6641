import json
from dataclasses import replace

import pytest

from hone.evals.intervals import wilson
from hone.evals.records import Scored
from hone.evals.summary import Variant, by_pattern, changes, results, splits, summarize

pytestmark = pytest.mark.smoke


def scored(ok=True, exact=True, language="en", hardness="easy", split="unseen_queries", **fields):
    fields = {"question": "?", "pattern": "", "gold": "g", "predicted": "p", **fields}
    return Scored(language=language, hardness=hardness, split=split, ok=ok, exact=exact, **fields)


RECORDS = (
    scored(language="en"),
    scored(ok=False, exact=True, language="ko", hardness="hard", pattern="a"),
    scored(language="ko", pattern="a"),
    scored(ok=False, exact=False, split="unseen_phrasings", pattern="b"),
    scored(ok=True, exact=False, split="unseen_phrasings", language="ko"),
)


def test_counts_by_language_and_hardness():
    summary = summarize(RECORDS, "execution_accuracy")
    assert list(summary) == ["unseen_queries", "unseen_phrasings"] == list(splits(RECORDS))
    first = summary["unseen_queries"]
    assert (first.all.correct, first.all.n) == (2, 3)
    assert list(first.language) == ["all", "ko", "en"]
    assert (first.language["ko"].correct, first.language["ko"].n) == (1, 2)
    assert list(first.hardness) == ["all", "easy", "hard"]
    assert (first.hardness["hard"].correct, first.hardness["hard"].n) == (0, 1)


def test_patterns_weakest_first():
    assert [(name, s.correct, s.n) for name, s in by_pattern(RECORDS).items()] == [
        ("b", 0, 1),
        ("a", 1, 2),
    ]


def test_changes_between_variants():
    other = (replace(RECORDS[0], ok=False, predicted="q"), *RECORDS[1:])
    change = changes(Variant("fp32", RECORDS, 8, 1.0), Variant("int8", other, 2, 2.0))
    assert (change.n, change.same_sql, change.gained, change.lost) == (5, 4, 0, 1)


def test_results_for_programs():
    model = Variant("fp32", RECORDS, 4000, 12.3456)
    int8 = Variant("int8", RECORDS, 1000, 20.0)
    figures = results(model, int8, seconds={"train": 1.23456, "total": 9.0}, parameters=77)
    assert figures["execution_accuracy"]["unseen_queries"] == {
        "all": 0.666667,
        "ko": 0.5,
        "en": 1.0,
    }
    assert figures["exact_match"]["unseen_phrasings"] == {"all": 0.0, "ko": 0.0, "en": 0.0}
    assert figures["bytes"] == 4000
    assert figures["tokens_per_second"] == 12.346
    assert figures["seconds"] == {"train": 1.235, "total": 9.0}
    assert figures["parameters"] == 77
    assert figures["items"]["unseen_queries"] == {"all": 3, "ko": 2, "en": 1}
    low, high = figures["intervals"]["execution_accuracy"]["unseen_queries"]["all"]
    assert (low, high) == pytest.approx(wilson(2, 3), abs=1e-6)
    for key in ("execution_accuracy", "exact_match"):
        assert figures["int8"][key] == figures[key]
    assert figures["int8"]["bytes"] == 1000
    assert figures["int8"]["tokens_per_second"] == 20.0
    assert json.loads(json.dumps(figures)) == figures


def test_results_of_other_sets_and_without_compression():
    model = Variant("bf16", (scored(split="dev"),), 1, 1.0)
    figures = results(model, seconds={"train": 1, "total": 1}, parameters=1)
    assert figures["execution_accuracy"] == {"dev": {"all": 1.0, "en": 1.0}}
    assert "int8" not in figures
