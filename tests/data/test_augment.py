import sqlite3

import pytest

from hone.data import read_examples, vary_examples
from hone.data.augment import _exchange_in_question
from hone.sql import ValueIndex, canonical_sql, open_database, read_schema

ROWS = [
    ("Austin", "texas", "서울"),
    ("Dallas", "texas", "부산"),
    ("Columbus", "ohio", "제주"),
    ("New York", "new york", "대구"),
    ("Boise", "idaho", "광주"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(database, schema, index) of a few cities and states."""
    path = tmp_path_factory.mktemp("place") / "place.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE city (name TEXT, state TEXT, district TEXT, size INTEGER)")
        connection.executemany("INSERT INTO city VALUES (?, ?, ?, 7)", ROWS)
        connection.execute("CREATE TABLE border (state TEXT, other TEXT)")
        pairs = [("texas", "ohio"), ("ohio", "idaho"), ("new york", "ohio")]
        connection.executemany("INSERT INTO border VALUES (?, ?)", pairs)
    connection.close()
    database, schema = open_database(path), read_schema(path)
    yield database, schema, ValueIndex.build(database, schema)
    database.close()


def vary(place, question, sql, copies=4, **options):
    _, schema, index = place
    return vary_examples([(question, sql)], schema, index, copies=copies, seed=1, **options)[0]


@pytest.mark.smoke
def test_other_values_of_the_column_take_the_place_on_both_sides(place):
    found = vary(place, "cities of Texas?", "SELECT name FROM city WHERE state = 'texas'", 9)
    assert found[0] == ("cities of Texas?", "SELECT name FROM city WHERE state = 'texas'")
    assert set(found[1:]) == {
        (f"cities of {state}?", f"SELECT name FROM city WHERE state = '{state}'")
        for state in ("ohio", "new york", "idaho")
    }


def test_all_occurrences_change_together_and_letters_follow_the_question(place):
    sql = (
        "SELECT name FROM city WHERE state = 'texas' AND size = (SELECT MAX(size) FROM city "
        "WHERE state = \"texas\") AND name != 'Dallas'"
    )
    for question, query in vary(place, "TEXAS but dallas, in texas", sql)[1:]:
        assert query.count("'texas'") + query.count('"texas"') in (0, 2)
        if "'ohio'" in query:
            assert '"ohio"' in query
            assert question.startswith("OHIO but")
            assert question.endswith("in ohio")
        if "'Austin'" in query:
            assert "austin" in question


def test_values_compared_with_two_columns_come_from_both(place):
    sql = "SELECT 1 FROM city, border WHERE city.state = 'texas' AND border.state = 'texas'"
    found = vary(place, "cities and borders of texas", sql, 9)
    assert {question.split()[-1] for question, _ in found[1:]} == {"ohio", "york"}


@pytest.mark.parametrize(
    ("question", "sql"),
    [
        ("names with texas", "SELECT name FROM city WHERE state LIKE '%texas%'"),
        ("texas", "SELECT name FROM city WHERE state LIKE '%texas%' OR state = 'texas'"),
        ("texas", "SELECT name FROM city WHERE lower(state) = 'texas'"),
        ("texas", "SELECT name, 'texas' FROM city WHERE state = 'texas'"),
        ("the lone star state", "SELECT name FROM city WHERE state = 'texas'"),
        ("texan cities", "SELECT name FROM city WHERE state = 'texas'"),
        ("texas", "SELECT name FROM city WHERE state = 'texas' AND"),
        ("7", "SELECT name FROM city WHERE size = 7"),
    ],
)
def test_what_is_not_surely_the_same_on_both_sides_stays(place, question, sql):
    assert vary(place, question, sql) == [(question, sql)]


def test_only_accepted_queries_are_kept(place):
    database = place[0]
    sql = "SELECT size FROM city WHERE name = 'Austin' AND state = 'texas'"
    found = vary(
        place, "size of Austin, texas", sql, 9, accept=lambda s: bool(database.execute(s).rows)
    )
    assert len(found) > 1
    assert all(database.execute(query).rows for _, query in found)


@pytest.mark.parametrize(
    ("question", "old", "new", "expected"),
    [
        ("서울은 어때?", "서울", "제주", "제주는 어때?"),
        ("제주가 좋아", "제주", "서울", "서울이 좋아"),
        ("서울로 가는", "서울", "부산", "부산으로 가는"),
        ("부산으로는 안 가", "부산", "제주", "제주로는 안 가"),
        ("서울에 사는", "서울", "제주", "제주에 사는"),
        ("서울이라는 도시", "서울", "제주", "제주라는 도시"),
        ("서울과 부산을", "부산", "제주", "서울과 제주를"),
    ],
)
def test_korean_particles_follow_the_new_value(question, old, new, expected):
    assert _exchange_in_question(question, {old: new}) == expected


def test_values_that_swap_are_not_mixed_up():
    exchange = {"texas": "ohio", "ohio": "texas"}
    assert _exchange_in_question("from texas to ohio", exchange) == "from ohio to texas"


def test_korean_questions(place):
    found = vary(place, "서울은 어느 주야?", "SELECT state FROM city WHERE district = '서울'", 9)
    questions = {question for question, _ in found[1:]}
    assert questions == {
        "부산은 어느 주야?",
        "제주는 어느 주야?",
        "대구는 어느 주야?",
        "광주는 어느 주야?",
    }


def test_a_quote_in_a_value_is_doubled(place, tmp_path):
    path = tmp_path / "quote.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE shop (name TEXT)")
        connection.executemany("INSERT INTO shop VALUES (?)", [("Joe's",), ("Corner",)])
    connection.close()
    with open_database(path) as database:
        schema = read_schema(path)
        index = ValueIndex.build(database, schema)
        for a, b in (("Joe's", "Corner"), ("Corner", "Joe's")):
            sql = "SELECT * FROM shop WHERE name = '{}'"
            pair = (f"is {a} open", sql.format(a.replace("'", "''")))
            other = (f"is {b} open", sql.format(b.replace("'", "''")))
            assert vary_examples([pair], schema, index, copies=3, seed=0) == [[pair, other]]


def test_geoquery(hone_data):
    folder = hone_data / "text2sql_domains"
    path = folder / "geography.sqlite"
    examples = [
        e for e in read_examples(folder / "geography.jsonl", "question_split") if e.split == "train"
    ][:150]
    with open_database(path) as database:
        schema = read_schema(path)
        index = ValueIndex.build(database, schema)
        pairs = [(e.question, canonical_sql(e.sql, schema)) for e in examples]
        varied = vary_examples(pairs, schema, index, copies=3, seed=0)
        assert varied == vary_examples(pairs, schema, index, copies=3, seed=0)
        mentioned = sum("'" in sql for _, sql in pairs)
        assert sum(len(found) == 3 for found in varied) > 0.8 * mentioned
        for found in varied:
            assert len(set(found)) == len(found)
            for _, sql in found[1:]:
                if "ALL (" not in sql:  # golds that SQLite cannot run stay so
                    database.execute(sql)
