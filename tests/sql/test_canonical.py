import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hone.core.errors import RequestError
from hone.sql import Schema, canonical_sql, open_database, read_schema

SCRIPT = """
CREATE TABLE City (Name TEXT, State TEXT, Population INT);
CREATE TABLE State (Name TEXT, Area REAL, "order" INT, 수도 TEXT);
INSERT INTO City VALUES ('Austin', 'Texas', 9), ('Reno', 'Nevada', 2), ('Dallas', 'Texas', 12);
INSERT INTO State VALUES ('Texas', 5.5, 2, 'Austin'), ('Nevada', 4, 1, NULL);
"""

CASES = [
    # names and aliases
    ("select NAME from CITY ;", "SELECT Name FROM City"),
    ("SELECT c.name FROM city AS c", "SELECT Name FROM City"),
    ('SELECT c."NAME" FROM "city" c', "SELECT Name FROM City"),
    ("SELECT [name] FROM `city`", "SELECT Name FROM City"),
    ("SELECT s.\"ORDER\", 수도 FROM state s", 'SELECT "order", 수도 FROM State'),
    ("SELECT c.* FROM city c", "SELECT * FROM City"),
    (
        "SELECT a.name FROM city a INNER JOIN state b ON a.state = b.name",
        "SELECT City.Name FROM City JOIN State ON City.State = State.Name",
    ),
    (
        "SELECT area FROM city, state WHERE city.state = state.name",
        "SELECT State.Area FROM City, State WHERE City.State = State.Name",
    ),
    (
        "SELECT x.name FROM city x JOIN city y ON x.state = y.state AND x.name <> y.name",
        "SELECT T1.Name FROM City T1 JOIN City T2 ON T1.State = T2.State AND T1.Name != T2.Name",
    ),
    (
        "SELECT count(*) FROM city a LEFT OUTER JOIN state b ON a.state = b.name",
        "SELECT COUNT(*) FROM City LEFT JOIN State ON City.State = State.Name",
    ),
    (
        "SELECT name FROM city JOIN state USING (NAME)",
        "SELECT Name FROM City JOIN State USING (Name)",
    ),
    # subqueries and correlation
    (
        "SELECT a.name FROM city a WHERE a.population = (SELECT max(b.population) FROM city b)",
        "SELECT Name FROM City WHERE Population = (SELECT MAX(Population) FROM City)",
    ),
    (
        "SELECT a.name FROM city a WHERE a.population = "
        "(SELECT max(b.population) FROM city b WHERE b.state = a.state)",
        "SELECT Name FROM City T1 WHERE Population = "
        "(SELECT MAX(Population) FROM City WHERE State = T1.State)",
    ),
    (
        "SELECT name FROM state WHERE exists(SELECT 1 FROM city WHERE city.state = state.name)",
        "SELECT Name FROM State WHERE EXISTS (SELECT 1 FROM City WHERE State = State.Name)",
    ),
    (
        "SELECT max(q.n) FROM (SELECT count(*) AS n FROM city c GROUP BY c.state) AS q",
        "SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM City GROUP BY State)",
    ),
    (
        "SELECT q.n, s.area FROM (SELECT state, count(*) n FROM city GROUP BY 1) q "
        "JOIN state s ON s.name = q.state",
        "SELECT T1.n, State.Area FROM (SELECT State, COUNT(*) AS n FROM City GROUP BY 1) T1 "
        "JOIN State ON State.Name = T1.State",
    ),
    (
        "WITH big AS (SELECT * FROM city WHERE population > 5) SELECT b.name FROM big b",
        "WITH big AS (SELECT * FROM City WHERE Population > 5) SELECT Name FROM big",
    ),
    # output names
    (
        "SELECT state AS s, count(*) AS n FROM city GROUP BY s HAVING n > 1 ORDER BY n DESC, s ASC",
        "SELECT State, COUNT(*) FROM City GROUP BY State HAVING COUNT(*) > 1 "
        "ORDER BY COUNT(*) DESC, State ASC",
    ),
    ("SELECT name AS n FROM city ORDER BY n asc", "SELECT Name FROM City ORDER BY Name"),
    (
        "SELECT 1 AS one, name FROM city ORDER BY one",
        "SELECT 1 AS one, Name FROM City ORDER BY one",
    ),
    (
        "SELECT name AS n FROM city UNION SELECT name FROM state ORDER BY n",
        "SELECT Name AS n FROM City UNION SELECT Name FROM State ORDER BY n",
    ),
    # strings
    ('SELECT name FROM city WHERE state = "Texas"', "SELECT Name FROM City WHERE State = 'Texas'"),
    ('SELECT name FROM city WHERE state = "state"', "SELECT Name FROM City WHERE State = State"),
    (
        "SELECT name FROM city WHERE state = 'it''s' AND name = \"o'x\"",
        "SELECT Name FROM City WHERE State = 'it''s' AND Name = 'o''x'",
    ),
    # operators, parentheses, spaces
    (
        "SELECT name FROM city WHERE ((population)>=3) AND (state == 'Texas' OR (name<>'x'))",
        "SELECT Name FROM City WHERE Population >= 3 AND (State = 'Texas' OR Name != 'x')",
    ),
    (
        "SELECT name FROM city WHERE not state in ('a','b') AND NOT (name LIKE 'A%') "
        "AND population IS NOT NULL AND NOT population BETWEEN 1 AND 3 and state is not 'x'",
        "SELECT Name FROM City WHERE State NOT IN ('a', 'b') AND Name NOT LIKE 'A%' "
        "AND Population IS NOT NULL AND Population NOT BETWEEN 1 AND 3 AND State IS NOT 'x'",
    ),
    (
        "SELECT name FROM city WHERE NOT (name NOT LIKE 'A%') AND name NOT LIKE 'x!%' ESCAPE '!'",
        "SELECT Name FROM City WHERE NOT (Name NOT LIKE 'A%') AND Name NOT LIKE 'x!%' ESCAPE '!'",
    ),
    (
        "SELECT (population + 1) * 2, -(3), (population) FROM city WHERE (population * 2) > 3",
        "SELECT (Population + 1) * 2, -3, Population FROM City WHERE Population * 2 > 3",
    ),
    ("SELECT name FROM city LIMIT 1, 2", "SELECT Name FROM City LIMIT 2 OFFSET 1"),
    ("SELECT name FROM city JOIN (state)", None),
    # functions and types keep their names and meaning
    (
        "SELECT ifnull(수도, '-'), substr(name, 1, 2), cast(area as numeric) FROM state",
        "SELECT IFNULL(수도, '-'), SUBSTR(Name, 1, 2), CAST(Area AS NUMERIC) FROM State",
    ),
    (
        "SELECT strftime(\"%Y\", '2020-01-01'), date('2020-01-01'), cast('2020-01-01' AS date)",
        "SELECT STRFTIME('%Y', '2020-01-01'), DATE('2020-01-01'), CAST('2020-01-01' AS DATE)",
    ),
    (
        "SELECT count(distinct state), sum(population)/count(*), total(population) FROM city",
        "SELECT COUNT(DISTINCT State), SUM(Population) / COUNT(*), TOTAL(Population) FROM City",
    ),
    (
        "SELECT CASE WHEN area>5 THEN 'big' ELSE 'small' END, name || '!' FROM state",
        "SELECT CASE WHEN Area > 5 THEN 'big' ELSE 'small' END, Name || '!' FROM State",
    ),
    (
        "SELECT name, rank() OVER (PARTITION BY state ORDER BY population DESC) FROM city",
        "SELECT Name, RANK() OVER (PARTITION BY State ORDER BY Population DESC) FROM City",
    ),
]  # fmt: skip


@pytest.fixture
def place(make_database) -> Iterator[tuple[Schema, object]]:
    path = make_database(SCRIPT)
    with open_database(path) as database:
        yield read_schema(path), database


@pytest.mark.smoke
@pytest.mark.parametrize(("sql", "expected"), CASES)
def test_one_spelling_that_returns_the_same_rows(place, sql, expected) -> None:
    schema, database = place
    written = canonical_sql(sql, schema)
    if expected is not None:
        assert written == expected
    assert canonical_sql(written, schema) == written
    try:
        rows = database.execute(sql).rows
    except RequestError:
        # A column that a USING merges is ambiguous only to some versions of SQLite.
        assert expected is None or "USING" in sql
        return
    assert database.execute(written).rows == rows


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("selec  name   from city ;", "selec name from city"),
        ("  SELECT  'a  b'\n FROM ", "SELECT 'a  b' FROM"),
        ("SELECT 0x1F;", "SELECT 0x1F"),
        ("SELECT x'00ff'  FROM city", "SELECT x'00ff' FROM city"),
        ("VALUES (1),  (2)", "VALUES (1), (2)"),
        ("DROP   TABLE city", "DROP TABLE city"),
        ("SELECT 1;  SELECT 2", "SELECT 1; SELECT 2"),
        (
            "SELECT name FROM city ORDER BY 1  UNION SELECT name FROM state",
            "SELECT name FROM city ORDER BY 1 UNION SELECT name FROM state",
        ),
        ("", ""),
        ("it's", "it's"),
        ("(" * 3000, "(" * 3000),
    ],
)
def test_what_it_cannot_read_keeps_its_words(place, sql, expected) -> None:
    assert canonical_sql(sql, place[0]) == expected


def test_unknown_names_are_left_alone(place) -> None:
    written = canonical_sql("select Foo, c.Bar from Nowhere c join city on x = 1", place[0])
    assert written == "SELECT Foo, Nowhere.Bar FROM Nowhere JOIN City ON x = 1"


def test_names_that_must_be_quoted(make_database) -> None:
    path = make_database(
        'CREATE TABLE "my table" ("a b" INT, "select" TEXT, T1 INT); CREATE TABLE T1 (x INT);'
        "INSERT INTO \"my table\" VALUES (1, 'q', 2)"
    )
    schema = read_schema(path)
    sql = 'SELECT m."A B", n."SELECT" FROM "MY TABLE" m, "my table" n WHERE m.T1 = n.t1'
    written = canonical_sql(sql, schema)
    # T1 is taken by a table.
    assert written == (
        'SELECT T2."a b", T3."select" FROM "my table" T2, "my table" T3 WHERE T2.T1 = T3.T1'
    )
    with open_database(path) as database:
        assert database.execute(written).rows == [(1, "q")]


def _golds(hone_data: Path, every: int) -> Iterator[tuple[Path, list[str]]]:
    by_path: dict[Path, list[str]] = {}
    lines = (hone_data / "spider" / "questions.jsonl").read_text().splitlines()
    for line in lines[::every]:
        record = json.loads(line)
        path = hone_data / "spider" / "database" / f"{record['db_id']}.sqlite"
        by_path.setdefault(path, []).append(record["sql"])
    folder = hone_data / "text2sql_domains"
    lines = (folder / "geography.jsonl").read_text().splitlines()
    by_path[folder / "geography.sqlite"] = [json.loads(line)["sql"] for line in lines[::every]]
    yield from by_path.items()


def test_real_queries_return_the_same_rows(hone_data: Path) -> None:
    checked = 0
    for path, queries in _golds(hone_data, every=25):
        schema = read_schema(path, sample_rows=1)
        with open_database(path) as database:
            for sql in dict.fromkeys(queries):
                written = canonical_sql(sql, schema)
                assert canonical_sql(written, schema) == written
                try:
                    rows = database.execute(sql, 100_000).rows
                except RequestError:
                    continue
                assert database.execute(written, 100_000).rows == rows, (sql, written)
                checked += 1
    assert checked > 250
