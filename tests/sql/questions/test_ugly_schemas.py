from collections.abc import Callable

import pytest

from hone.core.errors import DataError
from hone.sql import Database, Schema
from hone.sql.canonical import canonical_sql
from hone.sql.hardness import hardness
from hone.sql.questions import Example, generate

Shop = tuple[Schema, Database]
Make = Callable[[str], Shop]


def _rows(table: str, count: int, row: str) -> str:
    return (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        f"INSERT INTO {table} SELECT {row} FROM n;"
    )


def _ask(shop: Shop, count: int = 150) -> list[Example]:
    schema, database = shop
    with database:
        examples = [
            example
            for split in ("train", "unseen_queries", "unseen_phrasings")
            for example in generate(schema, database, seed=1, count=count, split=split)  # type: ignore[arg-type]
        ]
        for sql in {example.sql for example in examples}:
            database.execute(sql)
            assert canonical_sql(sql, schema) == sql
    return examples


def _kinds(examples: list[Example]) -> set[str]:
    return {example.pattern.split("/")[0] for example in examples}


def test_quoted_reserved_and_korean_names(make_database: Make) -> None:
    examples = _ask(
        make_database(
            'CREATE TABLE "order" (id INTEGER PRIMARY KEY, "group" TEXT, "unit price" REAL,'
            ' "a""b" TEXT, 결제일 DATE);'
            + _rows(
                '"order"',
                80,
                "i, substr('xyzw', i % 4 + 1, 1) || 'side', i * 1.5, 'word' || (i % 7),"
                " date('2024-01-01', i || ' days')",
            )
            + "CREATE TABLE 학생 (학번 INTEGER PRIMARY KEY, 이름 TEXT, 학년 INTEGER, 동아리 TEXT);"
            + _rows(
                "학생", 60, "i, '학생' || i, i % 4 + 1, substr('가나다라', i % 4 + 1, 1) || '반'"
            )
        )
    )
    text = "\n".join(example.sql for example in examples)
    for name in ('"order"', '"group"', '"unit price"', '"a""b"', "학생", "이름", "결제일"):
        assert name in text, name
    assert not any(kind.startswith("join") for kind in _kinds(examples))
    assert any("학년" in example.question for example in examples)
    for example in examples[::9]:
        assert example.hardness == hardness(example.sql)


def test_only_text_columns(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE words (word TEXT, kind TEXT);"
            + _rows("words", 50, "'word' || i, substr('abc', i % 3 + 1, 1) || 'type'")
        ),
        60,
    )
    assert {"filter", "count", "group_count"} <= _kinds(examples)
    assert not {"aggregate", "top", "above_average"} & _kinds(examples)


def test_a_view_and_a_table_of_bytes(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE files (id INTEGER PRIMARY KEY, body BLOB, size INTEGER, type TEXT);"
            + _rows("files", 70, "i, x'0102', i * 10, substr('pjg', i % 3 + 1, 1) || 'ng'")
            + "CREATE VIEW large AS SELECT id, size, type FROM files WHERE size > 300;"
        ),
        80,
    )
    assert any("FROM large" in example.sql for example in examples)
    assert not any("body" in example.sql for example in examples)


def test_composite_keys_and_two_links_between_tables_are_not_joined(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE airport (code TEXT PRIMARY KEY, city TEXT);"
            + _rows("airport", 20, "'A' || i, 'City' || (i % 5)")
            + "CREATE TABLE flight (id INTEGER PRIMARY KEY, origin TEXT REFERENCES airport (code),"
            " target TEXT REFERENCES airport (code), seats INTEGER);"
            + _rows("flight", 90, "i, 'A' || (i % 20 + 1), 'A' || (i % 7 + 1), i * 3 % 50")
            + "CREATE TABLE seat (flight INTEGER, place INTEGER, price REAL,"
            " PRIMARY KEY (flight, place));" + _rows("seat", 60, "i, i % 9, i * 2.5")
        ),
        80,
    )
    assert not any("JOIN" in example.sql for example in examples)


def test_columns_with_the_same_display_name_are_told_apart(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE t (id INTEGER PRIMARY KEY,"
            " a_total INTEGER, -- total\n b_total INTEGER -- total\n);"
            + _rows("t", 60, "i, i * 7, i * 11")
        ),
        60,
    )
    assert any("a total" in example.question for example in examples)
    assert any("b total" in example.question for example in examples)


def test_nulls_do_not_make_not_in_empty(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT NOT NULL);"
            + _rows("owner", 40, "i, 'Owner' || i")
            + "CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER REFERENCES owner (id),"
            " kind TEXT);"
            + _rows(
                "pet",
                60,
                "i, CASE WHEN i % 3 THEN i % 25 + 1 END, substr('dc', i % 2 + 1, 1) || 'og'",
            )
        ),
        150,
    )
    assert "has_none" in _kinds(examples)
    assert not any("NOT IN (SELECT owner_id" in example.sql for example in examples)


def test_no_rows_leaves_nothing_to_ask(make_database: Make) -> None:
    schema, database = make_database("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT);")
    with database, pytest.raises(DataError, match="No question can be asked"):
        generate(schema, database, seed=1, count=10, split="train")


def test_empty_tables_beside_full_ones_are_left_out(make_database: Make) -> None:
    examples = _ask(
        make_database(
            "CREATE TABLE empty (id INTEGER PRIMARY KEY, name TEXT);"
            "CREATE TABLE full (id INTEGER PRIMARY KEY, size INTEGER);"
            + _rows("full", 50, "i, i * 3 % 41")
        ),
        40,
    )
    assert not any("FROM empty" in example.sql for example in examples)
