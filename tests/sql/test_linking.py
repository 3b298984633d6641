import time
import unicodedata
from collections.abc import Iterator

import pytest

from hone.sql import Link, ValueIndex, open_database, read_schema

SCRIPT = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, grade TEXT, code TEXT);
INSERT INTO customers VALUES
  (1, '김하늘', '서울', 'VIP', '550e8400-e29b-41d4-a716-446655440000'),
  (2, 'Ann Lee', 'New York', 'Basic', '550e8400-e29b-41d4-a716-446655440001'),
  (3, 'York', '부산', 'a', '550e8400-e29b-41d4-a716-446655440002'),
  (4, 'The', '남서울', '12', '550e8400-e29b-41d4-a716-446655440003');
CREATE TABLE shops (city TEXT, slogan TEXT, size INT);
INSERT INTO shops VALUES ('서울', printf('%.61c', 'x'), 3), ('SEOUL', '최고의 커피!', 4),
  ('Seoul', 'C++ / C#', 5);
CREATE VIEW seen AS SELECT city FROM shops;
"""


@pytest.fixture
def index(make_database) -> Iterator[ValueIndex]:
    path = make_database(SCRIPT)
    with open_database(path) as database:
        yield ValueIndex.build(database, read_schema(path))


CASES = [
    ("서울에 사는 고객", ["서울", "서울"]),
    ("서울에서만 산 고객은?", ["서울", "서울"]),
    ("서울은요", ["서울", "서울"]),
    ("서울대학교 근처", []),
    ("남서울에 사는", ["남서울"]),
    ("동서울에 사는", []),
    ("김하늘씨의 등급", ["김하늘"]),
    ("김하늘님이 산 것", ["김하늘"]),
    ("VIP고객 중 부산출신", ["VIP", "부산"]),
    ("vip인 고객", ["VIP"]),
    ("customers in new york", ["New York"]),
    ("customers in New  York, please", ["New York"]),
    ("York's orders", ["York"]),
    ("Yorkshire", []),
    ("the basics", []),
    ("basic.", ["Basic"]),
    ("ann lee and York", ["Ann Lee", "York"]),
    ("shops in Seoul", ["Seoul"]),
    ("shops in SEOUL", ["SEOUL"]),
    ("shops in seoul", ["SEOUL"]),
    ("which shop says C++ / C#?", ["C++ / C#"]),
    ("'최고의 커피!'라는 가게", ["최고의 커피!"]),
    ("12 of a kind", []),
    ("", []),
    ("서", []),
    ("x" * 70, []),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("question", "values"), CASES)
def test_links(index: ValueIndex, question: str, values: list[str]) -> None:
    assert [link.value for link in index.link(question)] == values
    decomposed = unicodedata.normalize("NFD", question)
    assert [link.value for link in index.link(decomposed)] == values


def test_every_column_in_the_order_of_the_schema(index: ValueIndex) -> None:
    assert index.link("부산과 서울") == (
        Link("customers", "city", "부산"),
        Link("customers", "city", "서울"),
        Link("shops", "city", "서울"),
    )
    places = [(link.start, link.end) for link in index.link("부산과  서울")]
    assert places == [(0, 2), (4, 6), (4, 6)]
    assert len(index.link("부산과 서울", limit=1)) == 1


def test_identifiers_views_numbers_and_long_text_are_left_out(index: ValueIndex) -> None:
    columns = {(table, column) for table, column, _ in index._columns}
    assert columns == {
        ("customers", "name"), ("customers", "city"), ("customers", "grade"),
        ("shops", "city"), ("shops", "slogan"),
    }  # fmt: skip


def test_a_cap_on_values(make_database) -> None:
    path = make_database(
        "CREATE TABLE t (a TEXT); WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c "
        "WHERE x < 3000) INSERT INTO t SELECT 'value ' || x FROM c"
    )
    with open_database(path) as database:
        index = ValueIndex.build(database, read_schema(path), max_values_per_column=1000)
        assert index.link("is value 1000 there?")
        assert not index.link("is value 1001 there?")


def test_many_questions_take_seconds() -> None:
    names = [f"the name {number} 서울 {number}" for number in range(20_000)]
    index = ValueIndex([("t", "a", names)])
    start = time.monotonic()
    for number in range(4000):
        index.link(
            f"show me the name {number} 서울 {number} 의 주문을 모두 보여줘 for the last year"
        )
    # 40,000 questions in 10 seconds; a busy machine gets three times that.
    assert time.monotonic() - start < 3
