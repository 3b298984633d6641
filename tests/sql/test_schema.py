import sqlite3
from pathlib import Path

import pytest

from hone.core.errors import ConfigError
from hone.sql import read_schema
from hone.sql.schema import ForeignKey, column_kind

SHOP = """
CREATE TABLE customers ( -- 고객, customer
  customer_id INTEGER PRIMARY KEY,
  fullName TEXT NOT NULL,      -- 이름 / name
  is_vip BOOLEAN, joined DATE,
  seen DATETIME -- 마지막 방문
);
CREATE TABLE orders (
  id INTEGER PRIMARY KEY,
  -- 주문 고객
  customer_id INTEGER REFERENCES customers,
  total REAL, note TEXT, photo BLOB
);
INSERT INTO customers VALUES (1, '김하늘', 1, '2024-01-02', '2024-01-02 10:00:00'),
                             (2, 'Ann', 0, '2024-02-03', NULL);
INSERT INTO orders VALUES (1, 1, 10.5, 'a', x'00ff'), (2, 1, 3, NULL, NULL), (3, 2, 7, 'a', x'01');
"""


@pytest.mark.smoke
def test_reads_names_kinds_keys_samples_and_labels(make_database) -> None:
    schema = read_schema(make_database(SHOP))
    assert [table.name for table in schema.tables] == ["customers", "orders"]
    customers, orders = schema.tables
    assert [column.kind for column in customers.columns] == [
        "integer", "text", "boolean", "date", "datetime",
    ]  # fmt: skip
    assert [column.kind for column in orders.columns] == [
        "integer", "integer", "real", "text", "blob",
    ]  # fmt: skip
    assert customers.primary_key == ("customer_id",)
    assert customers.rows == 2
    assert schema.foreign_keys == (
        ForeignKey("orders", ("customer_id",), "customers", ("customer_id",)),
    )
    name = schema.column("CUSTOMERS", "fullname")
    assert name is not None
    assert name.samples == ("김하늘", "Ann")
    assert (name.labels.en, name.labels.ko) == (("name",), ("이름",))
    assert (customers.labels.en, customers.labels.ko) == (("customer",), ("고객",))
    assert not name.nullable
    photo, note = orders.columns[4], orders.columns[3]
    assert photo.samples == ()
    assert (note.distinct, round(note.null_fraction, 3)) == (1, 0.333)
    assert orders.columns[1].labels.ko == ("주문 고객",)
    assert customers.columns[4].labels.ko == ("마지막 방문",)
    assert customers.columns[2].labels.en == customers.columns[2].labels.ko == ("is vip",)
    assert schema.table("nothing") is None
    assert schema.column("nothing", "at all") is None


def test_glossary_wins_over_comments(make_database, tmp_path: Path) -> None:
    glossary = tmp_path / "words.toml"
    glossary.write_text(
        '[tables.Orders]\nen = ["order", "purchase"]\nko = "주문"\n'
        '[columns."orders.TOTAL"]\nko = ["합계", "금액"]\n'
    )
    schema = read_schema(make_database(SHOP), glossary)
    orders = schema.table("orders")
    assert orders is not None
    assert (orders.labels.en, orders.labels.ko) == (("order", "purchase"), ("주문",))
    assert orders.columns[2].labels.ko == ("합계", "금액")
    assert orders.columns[2].labels.en == ("total",)
    assert schema.glossary_hash is not None
    assert read_schema(make_database(SHOP, "other.sqlite")).glossary_hash is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[tables.ordrs]\nko = "주문"', "no table 'ordrs'; did you mean 'orders'?"),
        ('[columns."orders.totl"]\nko = "합계"', "did you mean 'orders.total'?"),
        ('[columns.orders.total]\nko = "합계"', 'write [columns."orders.total"]'),
        ('[tables.orders]\nkr = "주문"', "no key 'kr'; did you mean 'ko'?"),
        ("[tables.orders]\nko = 3", "must be a name or a list of names, found 3"),
        ("[tables.orders]\nko = []", "must be a name or a list of names"),
        ('[tables.orders]\nko = ["", "x"]', "holds '', which is no name"),
        ('[tables]\norders = "주문"', "must say en = "),
        ('[table.orders]\nko = "주문"', "no key 'table'; did you mean 'tables'?"),
        ("tables = 3", "found 3"),
        ("[tables", "not valid TOML"),
    ],
)
def test_glossary_mistakes_get_a_sentence(make_database, tmp_path, text, expected) -> None:
    glossary = tmp_path / "words.toml"
    glossary.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_schema(make_database(SHOP), glossary)
    assert expected in str(caught.value)
    assert str(glossary) in str(caught.value)


def test_missing_glossary(make_database, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the glossary"):
        read_schema(make_database(SHOP), tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("declared", "values", "kind"),
    [
        ("INT", [1, 2], "integer"),
        ("INTEGER", [1.5, 2], "real"),
        ("DOUBLE", [1, 2], "real"),
        ("NUMERIC(10,2)", [1, 2], "real"),
        ("NUMERIC(10)", [1, 2], "integer"),
        ("VARCHAR(9)", ["a"], "text"),
        ("TEXT", ["2020-01-01", "2021-12-31"], "date"),
        ("TEXT", ["2020-01-01 10:00", "2021-12-31T10:00:00Z"], "datetime"),
        ("DATE", [1990, 1991], "integer"),
        ("BOOL", [0, 1], "boolean"),
        ("BOOL", ["T", "F"], "text"),
        ("INT", [0, 1], "integer"),
        ("TEXT", [b"x"], "blob"),
        ("INT", ["a", "b", 3], "text"),
        ("INT", [1] * 19 + ["n/a"], "integer"),
        ("DATETIME", [], "datetime"),
        ("TIMESTAMP", [], "datetime"),
        ("DATE", [], "date"),
        ("BOOLEAN", [], "boolean"),
        ("UNSIGNED BIG INT", [], "integer"),
        ("DECIMAL(5,2)", [], "real"),
        ("NVARCHAR", [], "text"),
        ("BLOB", [], "blob"),
        ("", [], "text"),
        ("", [1.0], "real"),
    ],
)
def test_column_kind(declared: str, values: list, kind: str) -> None:
    assert column_kind(declared.upper(), values) == kind


def test_dirt_is_not_sampled(make_database) -> None:
    path = make_database("CREATE TABLE t (a INTEGER, b REAL)")
    connection = sqlite3.connect(path)
    rows = [(number, float(number)) for number in range(30)] + [("n/a", float("inf"))]
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    connection.commit()
    connection.close()
    table = read_schema(path).tables[0]
    assert "n/a" not in table.columns[0].samples
    assert float("inf") not in table.columns[1].samples


def test_real_databases(hone_data: Path) -> None:
    schema = read_schema(hone_data / "text2sql_domains" / "geography.sqlite")
    pairs = {(key.table, key.columns[0], key.ref_table) for key in schema.foreign_keys}
    # By name, and by value where the name says nothing.
    assert ("city", "state_name", "state") in pairs
    assert ("river", "traverse", "state") in pairs
    assert ("border_info", "border", "state") in pairs
    assert all(key.inferred for key in schema.foreign_keys)
    for path in sorted((hone_data / "spider" / "database").glob("*.sqlite"))[::10]:
        assert read_schema(path).tables
