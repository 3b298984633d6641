"""Real databases are ugly: each kind works, or is refused with one clear sentence."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from hone.core.errors import DataError
from hone.sql import open_database, quote_identifier, read_schema
from hone.sql import schema as schema_module

# Root may write anywhere, so what needs an unwritable folder runs as nobody.
_NOBODY = 65534


def _refusal(path: Path) -> str:
    messages = set()
    for attempt in (read_schema, open_database):
        with pytest.raises(DataError) as caught:
            attempt(path)
        messages.add(str(caught.value))
    assert len(messages) == 1
    message = messages.pop()
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.smoke
def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in _refusal(tmp_path / "missing.sqlite")
    assert "is a folder" in _refusal(tmp_path)
    (tmp_path / "empty.sqlite").touch()
    assert "is empty" in _refusal(tmp_path / "empty.sqlite")
    (tmp_path / "text.sqlite").write_text("name,age\nKim,3\n" * 50)
    assert "not a SQLite database, or it is encrypted" in _refusal(tmp_path / "text.sqlite")
    (tmp_path / "encrypted.sqlite").write_bytes(os.urandom(8192))
    assert "encrypted" in _refusal(tmp_path / "encrypted.sqlite")
    (tmp_path / "cut.sqlite").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert "damaged" in _refusal(tmp_path / "cut.sqlite")
    (tmp_path / "below" / "text").mkdir(parents=True)
    assert "Cannot read" in _refusal(tmp_path / "text.sqlite" / "x.sqlite")


def test_a_truncated_database_is_refused(make_database) -> None:
    rows = ",".join(f"({number}, 'some text {number}')" for number in range(5000))
    path = make_database(f"CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES {rows}")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="malformed"):
        read_schema(path)


def test_no_tables(make_database) -> None:
    with pytest.raises(DataError, match="has no tables to ask about"):
        read_schema(make_database("CREATE TABLE t (a); DROP TABLE t"))


@pytest.mark.smoke
def test_names_of_every_kind(make_database) -> None:
    names = [
        "plain", "with space", "order", 'say "hi"', "it's", "[odd]", "select", "1st", "가격",
        "주문 금액", "Ünïcode", "semi;colon", "dash-ed", "per%cent", "a.b", "group", "emoji 😀",
        "back`tick", "new\nline", "values", "table",
    ]  # fmt: skip
    quoted = ", ".join('"' + name.replace('"', '""') + '" TEXT' for name in names)
    path = make_database(f'CREATE TABLE "My ""Table""" ({quoted})')
    schema = read_schema(path)
    table = schema.tables[0]
    assert [column.name for column in table.columns] == names
    with open_database(path) as database:
        for column in table.columns:
            name, home = quote_identifier(column.name), quote_identifier(table.name)
            result = database.execute(f"SELECT {name} FROM {home} WHERE {home}.{name} > ''")
            assert result.rows == []
    assert [quote_identifier(name) for name in ("plain", "가격", "order", 'say "hi"')] == [
        "plain", "가격", '"order"', '"say ""hi"""',
    ]  # fmt: skip


def test_views_empty_tables_composite_keys_and_generated_columns(make_database) -> None:
    path = make_database(
        """
        CREATE TABLE none (a INTEGER, b VARCHAR(9), c DATE, d BLOB);
        CREATE TABLE pair (a INT, b INT, c INT, PRIMARY KEY (b, a)) WITHOUT ROWID;
        INSERT INTO pair VALUES (1, 2, 3), (2, 2, 4);
        CREATE TABLE made (a INT, b INT GENERATED ALWAYS AS (a * 2) VIRTUAL,
                           c INT AS (a + 1) STORED);
        INSERT INTO made (a) VALUES (4);
        CREATE TABLE rowid_taken (rowid TEXT, oid TEXT, _rowid_ TEXT);
        INSERT INTO rowid_taken VALUES ('x', 'y', 'z');
        CREATE VIEW big AS SELECT a, count(*) AS n FROM pair GROUP BY a;
        CREATE VIEW broken AS SELECT missing FROM nowhere;
        """
    )
    schema = read_schema(path)
    tables = {table.name: table for table in schema.tables}
    assert list(tables) == ["none", "pair", "made", "rowid_taken", "big"]
    assert [column.kind for column in tables["none"].columns] == ["integer", "text", "date", "blob"]
    assert tables["none"].rows == 0
    assert tables["none"].columns[0].distinct is None
    assert tables["pair"].primary_key == ("b", "a")
    assert [column.samples for column in tables["made"].columns] == [(4,), (8,), (5,)]
    assert tables["rowid_taken"].columns[0].samples == ("x",)
    assert tables["big"].is_view
    assert tables["big"].rows is None
    assert tables["big"].columns[1].samples == (1,)
    assert len(schema.notes) == 1
    assert "the view 'broken' was left out" in schema.notes[0]


def test_full_text_tables_work_without_their_shadows(make_database) -> None:
    path = make_database(
        """
        CREATE VIRTUAL TABLE notes USING fts5(title, body);
        INSERT INTO notes VALUES ('first', 'hello world'), ('둘째', '안녕 세상');
        CREATE VIRTUAL TABLE old USING fts4(words);
        INSERT INTO old VALUES ('one two');
        CREATE VIRTUAL TABLE box USING rtree(id, low, high);
        INSERT INTO box VALUES (1, 0, 1);
        """
    )
    schema = read_schema(path)
    assert [table.name for table in schema.tables] == ["notes", "old", "box"]
    assert [column.name for column in schema.tables[0].columns] == ["title", "body"]
    assert schema.tables[0].columns[1].samples == ("hello world", "안녕 세상")
    with open_database(path) as database:
        found = database.execute("SELECT title FROM notes WHERE notes MATCH '세상'")
        assert found.rows == [("둘째",)]
        assert database.execute("SELECT words FROM old WHERE old MATCH 'two'").rows == [
            ("one two",)
        ]
        assert database.execute("SELECT id FROM box WHERE low < 1").rows == [(1,)]


def test_text_that_is_not_utf8(make_database) -> None:
    path = make_database("CREATE TABLE t (a TEXT, b TEXT)")
    with closing(sqlite3.connect(path)) as connection:
        euc = "서울".encode("euc-kr")
        connection.execute("INSERT INTO t VALUES (CAST(? AS TEXT), 'fine')", (euc,))
        connection.commit()
    column = read_schema(path).tables[0].columns[0]
    assert column.kind == "text"
    assert "\ufffd" in column.samples[0]
    with open_database(path) as database:
        assert "\ufffd" in database.execute("SELECT a FROM t").rows[0][0]


def test_a_utf16_database(make_database) -> None:
    path = make_database(
        "PRAGMA encoding='UTF-16'; CREATE TABLE 표 (이름 TEXT); INSERT INTO 표 VALUES ('가나')"
    )
    assert read_schema(path).tables[0].columns[0].samples == ("가나",)


def test_long_text_and_blobs_are_not_kept(make_database) -> None:
    path = make_database(
        "CREATE TABLE t (a TEXT, b BLOB);"
        "INSERT INTO t VALUES (printf('%.5000c', 'x'), zeroblob(3000000)), ('short', x'01')"
    )
    text, blob = read_schema(path).tables[0].columns
    assert text.samples == ("short",)
    assert blob.kind == "blob"
    assert blob.samples == ()


def test_a_big_table_costs_no_more_than_a_small_one(make_database, monkeypatch) -> None:
    path = make_database(
        """
        CREATE TABLE big (id INTEGER PRIMARY KEY, n INT, t TEXT);
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300000)
        INSERT INTO big SELECT x * 3, x % 997, 'row ' || (x % 50) FROM c;
        CREATE TABLE wide (k TEXT PRIMARY KEY, v INT) WITHOUT ROWID;
        INSERT INTO wide SELECT 'key ' || id, n FROM big;
        CREATE VIEW slow AS SELECT n, count(*) AS c, max(t) AS m FROM big GROUP BY n ORDER BY c;
        CREATE VIEW never AS SELECT a.n FROM big a, big b WHERE a.id + b.id < 0;
        """
    )
    steps = 0
    real_connect = schema_module.connect

    class Counting(sqlite3.Connection):
        def set_progress_handler(self, handler, n) -> None:
            def count() -> int:
                nonlocal steps
                steps += n
                return handler() if handler else 0

            super().set_progress_handler(count, n or 1000)

    def connect(path):
        real_connect(path).close()
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, factory=Counting)
        connection.set_progress_handler(None, 1000)
        return connection

    monkeypatch.setattr(schema_module, "connect", connect)
    schema = read_schema(path)
    tables = {table.name: table for table in schema.tables}
    # Two scans of the big table alone are about 3 million steps; each view may spend 4 million.
    assert steps < 2 * 4_000_000 + 1_500_000
    assert tables["big"].rows == 899_998  # the span of ids: an estimate
    assert tables["wide"].rows is None
    assert len(tables["big"].columns[1].samples) == 200
    assert max(tables["big"].columns[0].samples) > 50_000
    assert tables["slow"].columns[0].samples == () or tables["slow"].columns[0].distinct
    assert tables["never"].columns[0].distinct is None


def test_estimates_use_statistics_where_there_are_any(make_database) -> None:
    path = make_database(
        """
        CREATE TABLE big (id INTEGER PRIMARY KEY, n INT);
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 20000)
        INSERT INTO big SELECT x * 1000, x FROM c;
        CREATE INDEX i ON big (n); ANALYZE;
        """
    )
    assert read_schema(path).tables[0].rows == 20_000


def test_rowids_at_the_ends_of_their_range(make_database) -> None:
    path = make_database(
        """
        CREATE TABLE t (id INTEGER PRIMARY KEY, n INT);
        WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 11000)
        INSERT INTO t SELECT x, x FROM c;
        INSERT INTO t VALUES (9223372036854775807, 1), (-9223372036854775808, 2);
        """
    )
    table = read_schema(path).tables[0]
    assert table.rows == 2**64
    assert -(2**63) in table.columns[0].samples


def _write_wal(path: Path) -> None:
    """A database whose last rows are only in its write-ahead log, as a killed writer leaves it."""
    with closing(sqlite3.connect(path)) as writer:
        writer.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a INT);")
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(50)])
        writer.commit()
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{path}.copy{ending}")
    for ending in ("", "-wal", "-shm"):
        Path(f"{path}{ending}").unlink(missing_ok=True)
    for ending in ("", "-wal"):
        Path(f"{path}.copy{ending}").rename(f"{path}{ending}")


def test_rows_that_are_only_in_the_log_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    _write_wal(path)
    assert read_schema(path).tables[0].rows == 50
    with open_database(path) as database:
        assert database.execute("SELECT count(*) FROM t").rows == [(50,)]


def test_a_reader_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    with closing(sqlite3.connect(path)) as writer:
        writer.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a INT);")
        with open_database(path) as database:
            writer.execute("INSERT INTO t VALUES (1)")
            assert database.execute("SELECT count(*) FROM t").rows == [(0,)]
            writer.commit()
            assert database.execute("SELECT count(*) FROM t").rows == [(1,)]


def _read_as_nobody(path: Path) -> str:
    """What reading ``path`` gives where neither it nor its folder may be written to."""
    if os.getuid() == 0:
        os.seteuid(_NOBODY)
    try:
        with open_database(path) as database:
            return str(database.execute("SELECT count(*) FROM t").rows[0][0])
    except DataError as error:
        return str(error)
    finally:
        os.seteuid(os.getuid())


@pytest.fixture
def locked_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readonly")
    root = Path(tempfile.gettempdir()).resolve()
    parents = [folder, *(parent for parent in folder.parents if root in parent.parents)]
    modes = [parent.stat().st_mode for parent in parents]
    for parent in parents:
        parent.chmod(0o755)
    yield folder
    for parent, mode in zip(parents, modes, strict=True):
        parent.chmod(mode)


def test_a_readonly_file_in_a_readonly_folder(locked_folder: Path) -> None:
    path = locked_folder / "plain.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (a INT); INSERT INTO t VALUES (1), (2);")
    path.chmod(0o444)
    locked_folder.chmod(0o555)
    assert _read_as_nobody(path) == "2"


@pytest.mark.parametrize("with_log", [True, False])
def test_a_log_in_a_readonly_folder(locked_folder: Path, with_log: bool) -> None:
    path = locked_folder / "log.sqlite"
    if with_log:
        _write_wal(path)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a INT);")
    for file in locked_folder.iterdir():
        file.chmod(0o444)
    locked_folder.chmod(0o555)
    assert _read_as_nobody(path) == ("50" if with_log else "0")


def test_a_file_without_permission_is_refused(locked_folder: Path) -> None:
    path = locked_folder / "secret.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (a INT)")
    path.chmod(0o000)
    assert _read_as_nobody(path) == f"Cannot read {path}: Permission denied."
