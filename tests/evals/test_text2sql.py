import time
from dataclasses import dataclass

import pytest

from hone.evals.records import read_records, write_records
from hone.evals.text2sql import Scorer


@dataclass(frozen=True)
class Asked:
    question: str
    gold: str
    language: str = "en"
    hardness: str = "easy"
    split: str = "dev"
    pattern: str = ""


@pytest.fixture
def scorer(shop, shop_schema):
    return Scorer([shop], shop_schema, timeout_s=2.0)


CITIES = "SELECT city, COUNT(*) FROM stores GROUP BY city"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("gold", "predicted", "ok", "exact"),
    [
        (CITIES, CITIES, True, True),
        (CITIES, "  select city , count( * ) from stores group by city ;", True, True),
        # Columns may be permuted; exact match compares the selected columns as a set.
        (CITIES, "SELECT COUNT(*), city FROM stores GROUP BY city", True, True),
        # Without ORDER BY in the gold query the order of rows does not matter.
        (CITIES, f"{CITIES} ORDER BY city DESC", True, False),
        # With it, it does.
        (f"{CITIES} ORDER BY city", f"{CITIES} ORDER BY city DESC", False, False),
        # Values are ignored by exact match and not by execution.
        (
            "SELECT name FROM customers WHERE city = '서울'",
            "SELECT name FROM customers WHERE city = '부산'",
            False,
            True,
        ),
        # The same rows by another road.
        (
            "SELECT name FROM customers WHERE email IS NULL",
            "SELECT name FROM customers WHERE id IN (SELECT id FROM customers WHERE email IS NULL)",
            True,
            False,
        ),
        ("SELECT COUNT(*) FROM stores", "SELECT COUNT(*) FROM employees", False, False),
    ],
)
def test_scores(scorer, gold, predicted, ok, exact):
    scored = scorer.score(Asked("?", gold), predicted)
    assert (scored.ok, scored.exact) == (ok, exact)
    assert scored.error is None
    assert scored.gold_error is None


def test_record_shows_what_came_back(scorer):
    scored = scorer.score(Asked("도시별 매장 수는?", CITIES, "ko"), CITIES)
    assert scored.result is not None
    assert scored.result.columns == ("city", "COUNT(*)")
    assert len(scored.result.rows) == 5
    assert scored.result.total == 10
    assert not scored.result.more
    assert scored.gold_result == scored.result


@pytest.mark.parametrize(
    ("predicted", "error"),
    [
        ("SELECT nonsense FROM stores", "no such column"),
        ("DROP TABLE stores", "refused"),
        ("SELECT 1; DROP TABLE stores", "refused"),
        ("", "empty"),
        ("입니다", "refused"),
    ],
)
def test_a_failed_prediction_is_wrong_and_says_why(scorer, predicted, error):
    scored = scorer.score(Asked("?", CITIES), predicted)
    assert not scored.ok
    assert not scored.exact
    assert scored.error is not None
    assert error in scored.error
    assert scored.result is None
    assert scored.gold_result is not None


def test_two_failures_never_match(scorer):
    scored = scorer.score(Asked("?", "SELECT x FROM nowhere"), "SELECT x FROM nowhere")
    assert not scored.ok
    assert scored.error is not None
    assert scored.gold_error is not None


def test_a_gold_query_over_the_cap_is_no_reference(shop, shop_schema):
    scorer = Scorer([shop], shop_schema, row_cap=100)
    scored = scorer.score(Asked("?", "SELECT id FROM customers"), "SELECT id FROM customers")
    assert not scored.ok
    assert scored.gold_error == "The gold query returns over 100 rows."


def test_a_runaway_prediction_is_stopped(shop, shop_schema):
    scorer = Scorer([shop], shop_schema, timeout_s=0.2)
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    )
    start = time.monotonic()
    scored = scorer.score(Asked("?", CITIES), endless)
    assert time.monotonic() - start < 2
    assert not scored.ok
    assert "0.2 seconds" in scored.error


def test_a_flood_of_rows_is_not_read_to_its_end(scorer):
    scored = scorer.score(Asked("?", CITIES), "SELECT 1 FROM customers, customers AS b, orders")
    assert not scored.ok
    assert scored.result is not None
    assert scored.result.more
    assert scored.result.total == 1000


def test_a_result_cut_off_earlier_does_not_hide_a_later_match(scorer):
    everything = "SELECT order_id, product_id FROM order_items"  # over 1,000 rows
    assert not scorer.score(Asked("?", CITIES), everything).ok
    assert scorer.score(Asked("?", everything), everything).ok


def test_every_database_must_agree(shop, shop_schema, tmp_path):
    import shutil
    import sqlite3

    from hone.sql.execute import open_database

    other = tmp_path / "other.sqlite"
    shutil.copy(shop.path, other)
    with sqlite3.connect(other) as connection:
        connection.execute("UPDATE stores SET kind = city WHERE id = 1")
    gold = "SELECT COUNT(*) FROM stores WHERE kind = city"
    predicted = "SELECT 0 FROM stores LIMIT 1"
    with open_database(other) as second:
        assert Scorer([shop], shop_schema).score(Asked("?", gold), predicted).ok
        assert not Scorer([shop, second], shop_schema).score(Asked("?", gold), predicted).ok


def test_a_thousand_items_take_seconds(scorer):
    examples = [
        Asked("?", f"SELECT name, city FROM customers WHERE points > {points} LIMIT 30")
        for points in range(1000)
    ]
    predictions = [
        f"SELECT city, name FROM customers WHERE {points} < points LIMIT 30"
        for points in range(1000)
    ]
    start = time.monotonic()
    records = scorer.score_all(examples, predictions)
    assert time.monotonic() - start < 30  # about 4 s on an idle core
    assert sum(record.ok for record in records) == 1000


def test_records_survive_a_file(scorer, tmp_path):
    records = [
        scorer.score(Asked("줄\u2028바꿈 \ud800?", CITIES, "ko"), CITIES),
        scorer.score(Asked("?", CITIES), "SELECT x'00ff', 1e999, NULL, 'a'"),
        scorer.score(Asked("?", CITIES), "nothing"),
    ]
    path = tmp_path / "records.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    assert records[1].result.rows[0] == ("2 bytes", "inf", None, "a")


def test_geoquery_golds_score_themselves(hone_data):
    import json

    from hone.sql.execute import open_database
    from hone.sql.schema import read_schema

    folder = hone_data / "text2sql_domains"
    database = folder / "geography.sqlite"
    with open(folder / "geography.jsonl", encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]
    asked = [Asked(e["question"], e["sql"], split=e["question_split"]) for e in examples]
    with open_database(database) as opened:
        records = Scorer([opened], read_schema(database)).score_all(asked, [a.gold for a in asked])
    assert len(records) == 598
    # Three gold queries of the data set do not run on its database.
    assert sum(record.gold_error is not None for record in records) == 3
    assert all(record.ok for record in records if record.gold_error is None)
    assert all(record.exact for record in records if record.gold_error is None)
