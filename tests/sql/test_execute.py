import sqlite3
import threading
import time
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from hone.core.errors import RequestError
from hone.sql import open_database
from hone.sql.functions import register

SCRIPT = """
CREATE TABLE t (a INTEGER, b TEXT);
INSERT INTO t VALUES (1, 'texas'), (2, '서울'), (3, NULL);
CREATE VIEW v AS SELECT trim(b, 'ts') AS b FROM t;
"""
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def path(make_database) -> Path:
    return make_database(SCRIPT)


@pytest.fixture
def database(path):
    with open_database(path) as opened:
        yield opened


@pytest.mark.smoke
def test_rows_columns_and_cap(database) -> None:
    result = database.execute("SELECT a, b AS name FROM t ORDER BY a;  -- done")
    assert result.columns == ("a", "name")
    assert result.rows == [(1, "texas"), (2, "서울"), (3, None)]
    assert not result.truncated
    assert result.seconds >= 0
    capped = database.execute("SELECT a FROM t", row_cap=2)
    assert (len(capped.rows), capped.truncated) == (2, True)
    assert not database.execute("SELECT a FROM t", row_cap=3).truncated
    assert database.execute("VALUES (1), (2)").rows == [(1,), (2,)]
    assert database.execute("/* why */ WITH c AS (SELECT 1) SELECT * FROM c").rows == [(1,)]


def test_double_quoted_strings_are_strings(database) -> None:
    assert database.execute('SELECT a FROM t WHERE b = "texas"').rows == [(1,)]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1; DROP TABLE t", "more than one statement"),
        ("DROP TABLE t", "begins with DROP, and only SELECT queries are run"),
        ("  ; DROP TABLE t", "only SELECT queries are run"),
        ("DELETE FROM t", "begins with DELETE"),
        ("UPDATE t SET a = 2", "begins with UPDATE"),
        ("WITH x AS (SELECT 1) DELETE FROM t", "uses DELETE, and only reading is allowed"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT 1, 2", "uses INSERT"),
        ("PRAGMA journal_mode = DELETE", "begins with PRAGMA"),
        ("SELECT * FROM pragma_table_info('t')", "uses a table function"),
        ("ATTACH 'x.db' AS x", "begins with ATTACH"),
        ("VACUUM INTO 'copy.db'", "begins with VACUUM"),
        ("BEGIN", "begins with BEGIN"),
        ("EXPLAIN SELECT 1", "begins with EXPLAIN"),
        ("SELECT load_extension('x')", "uses the function load_extension"),
        ("SELECT writefile('x', 'y')", "no such function: writefile"),
        ("SELECT readfile('/etc/passwd')", "no such function: readfile"),
        ("SELECT fts3_tokenizer('simple')", "uses the function fts3_tokenizer"),
        ("SELECT length(zeroblob(1000000000))", "a value is over 1,000,000 bytes"),
        ("SELECT hex(randomblob(900000))", "a value is over 1,000,000 bytes"),
        ("SELECT replace(hex(zeroblob(400000)), '0', 'aaaaaaaaaa')", "a value is over"),
        ("SELECT ?", "placeholder"),
        ("SELECT :name", "placeholder"),
        ("SELECT nothing_here FROM t", "no such column: nothing_here"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT FROM", "syntax error"),
        ("SELECT 'open", "The query failed"),
        ("", "empty"),
        (" ;; ", "empty"),
        ("-- nothing", "only SELECT"),
        ("SELECT \0", "null character"),
        ("\ud800", "only SELECT"),
        ("SELECT '\ud800'", "The query failed"),
        ("SELECT " + "+1" * 60_000, "a value is over"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "The query failed"),
        ("서울에 사는 고객은?", "only SELECT queries are run"),
    ],
)
def test_refused_with_one_sentence(path, sql, expected) -> None:
    before = path.read_bytes()
    with open_database(path) as database:
        with pytest.raises(RequestError) as caught:
            database.execute(sql)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        # The database still answers, and nothing of it changed.
        assert database.execute("SELECT count(*) FROM t").rows == [(3,)]
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


@pytest.mark.smoke
def test_an_endless_query_is_interrupted(database) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"stopped after 0\.2 seconds"):
        database.execute(ENDLESS, timeout_s=0.2)
    assert time.monotonic() - start < 3
    assert database.execute("SELECT 1").rows == [(1,)]


def test_the_clock_also_runs_while_rows_are_fetched(database) -> None:
    endless_rows = ENDLESS.replace("count(*)", "x")
    with pytest.raises(RequestError, match="stopped"):
        database.execute(endless_rows, row_cap=10**12, timeout_s=0.2)


def test_both_interrupts_work_alone(database, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hone.sql.execute._Clock._check", lambda self: 0)
        with pytest.raises(RequestError, match="stopped"):
            database.execute(ENDLESS, timeout_s=0.1)
    monkeypatch.setattr("hone.sql.execute._Clock._interrupt", lambda self: None)
    with pytest.raises(RequestError, match="stopped"):
        database.execute(ENDLESS, timeout_s=0.1)


def test_a_late_interrupt_does_not_hit_the_next_query(database) -> None:
    for _ in range(30):
        assert database.execute("SELECT count(*) FROM t", timeout_s=0.001 * 50).rows == [(3,)]
    time.sleep(0.06)
    assert database.execute(ENDLESS.replace("FROM c)", "FROM c LIMIT 200000)")).rows == [(200_000,)]


@pytest.mark.parametrize(
    "sql",
    [
        # SQLite's own versions take up to minutes for these, without a place to stop them.
        "SELECT instr(hex(zeroblob(490000)), hex(zeroblob(250000)) || '1')",
        "SELECT length(replace(hex(zeroblob(490000)), hex(zeroblob(250000)) || '1', ''))",
        "SELECT trim(hex(zeroblob(490000)), replace(hex(zeroblob(29000)), '0', '1') || '0')",
    ],
)
def test_one_call_cannot_run_for_minutes(database, sql) -> None:
    start = time.monotonic()
    database.execute(sql, timeout_s=5)
    assert time.monotonic() - start < 3


def test_large_results_are_cut(database) -> None:
    endless_rows = ENDLESS.replace("count(*)", "zeroblob(900000)")
    result = database.execute(endless_rows, row_cap=10**9)
    assert result.truncated
    assert sum(len(row[0]) for row in result.rows) < 70_000_000


def test_json_and_window_functions_are_there(database) -> None:
    assert database.execute("SELECT value FROM json_each('[1, 2]')").rows == [(1,), (2,)]
    ranked = database.execute("SELECT rank() OVER (ORDER BY a DESC) FROM t ORDER BY a")
    assert ranked.rows == [(3,), (2,), (1,)]
    assert database.execute("SELECT b FROM v").rows == [("exa",), ("서울",), (None,)]


def test_threads_share_a_database(database) -> None:
    found: list[object] = []

    def ask() -> None:
        for _ in range(20):
            found.append(database.execute("SELECT sum(a) FROM t").rows[0][0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [6] * 80


def test_rewritten_functions_equal_sqlites_own() -> None:
    values = [
        None, "", "abc", "aab", "한글한", "1.5", 1, 0, -12, 1.5, 1e20, 1e-7, 0.1 + 0.2, -2.0,
        123456789012345678, 1e15, 123456789.125, b"ab", b"a", float("inf"), "  a  ", "b",
    ]  # fmt: skip
    with closing(sqlite3.connect(":memory:")) as own, closing(sqlite3.connect(":memory:")) as ours:
        register(ours, 1_000_000)
        calls = [(f"SELECT {name}(?, ?)", 2) for name in ("instr", "trim", "ltrim", "rtrim")]
        for sql, count in [*calls, ("SELECT replace(?, ?, ?)", 3)]:
            for arguments in product(values, repeat=count):
                expected = own.execute(sql, arguments).fetchone()
                assert ours.execute(sql, arguments).fetchone() == expected, (sql, arguments)
