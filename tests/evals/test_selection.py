from dataclasses import replace

import pytest
from made_up import made_up_records

from hone.evals.selection import choose_failures, choose_samples, failure_kind

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def records(shop):
    return made_up_records(shop)


def test_samples_do_not_depend_on_the_answers(records):
    chosen = choose_samples(records, 4)
    flipped = [replace(record, ok=not record.ok) for record in records]
    assert [r.question for r in choose_samples(flipped, 4)] == [r.question for r in chosen]
    assert choose_samples(records, 4) == chosen
    assert [record.language for record in chosen] == ["ko"] * 4 + ["en"] * 4


def test_samples_spread_over_sets_and_hardnesses(records):
    several = [replace(r, question=f"{r.question} {i}") for i, r in enumerate(records)]
    chosen = choose_samples(several, 8)
    korean = {(r.split, r.hardness) for r in chosen if r.language == "ko"}
    assert len(korean) == 8


def test_fewer_questions_than_asked_for(records):
    assert len(choose_samples(records[:1], 3)) == 1
    assert choose_samples([], 3) == []


def test_other_languages_come_last(records):
    mixed = [replace(records[0], language=name) for name in ("xx", "en", "ko", "ja")]
    assert [r.language for r in choose_samples(mixed, 1)] == ["ko", "en", "ja", "xx"]


def test_failures_are_wrong_and_of_many_kinds(records):
    chosen = choose_failures(records, 12)
    assert len(chosen) == 12
    assert not any(record.ok for record in chosen)
    assert len({(r.split, r.language, failure_kind(r)) for r in chosen}) >= 10


def test_kinds_of_failure(records):
    record = replace(records[0], ok=False, exact=False, error=None, gold_error=None)
    assert failure_kind(replace(record, ok=True)) is None
    assert failure_kind(record) == "another query"
    assert failure_kind(replace(record, exact=True)) == "same clauses, other values"
    assert failure_kind(replace(record, error="x")) == "does not run"
    assert failure_kind(replace(record, error="x", gold_error="y")) == "unusable gold"
