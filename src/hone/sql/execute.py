"""Running one untrusted query against a database that it cannot change.

Four fences: the file is opened read-only, an authorizer admits reading and nothing else, values and
results are capped, and a clock interrupts what runs too long.
"""

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hone.core.errors import RequestError
from hone.sql.connect import connect
from hone.sql.functions import register
from hone.sql.identifiers import quote_always

# One value, and one query's text. While SQLite works on one value it cannot be interrupted, so this
# also bounds how far a query can overrun its time limit: two seconds for a hostile LIKE.
_VALUE_BYTES = 1_000_000
_SQL_BYTES = 100_000
_PATTERN_BYTES = 1_000
_RESULT_BYTES = 64_000_000
_STEPS_BETWEEN_CHECKS = 2_000
_SOON_SECONDS = 0.02

_START = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\()*(\w*)", re.DOTALL)
_READERS = frozenset({"select", "with", "values"})
_DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"})
# Full-text tables ask these of their own file while they are read; neither takes an argument.
_HARMLESS_PRAGMAS = frozenset({"data_version", "page_size"})
_ACTIONS = {
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_TRANSACTION: "a transaction",
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
}


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of a query.

    ``truncated`` says that there were more rows than asked for, or more than 64 MB of values.
    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    truncated: bool
    seconds: float


class Database:
    """A database open for reading. Safe to share between threads: queries run one at a time."""

    def __init__(self, path: str | Path) -> None:
        """Open ``path``.

        Raises:
            DataError: it is no readable SQLite database.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._denied = ""
        self._connection = connect(path)
        _allow_double_quoted_strings(self._connection)
        _wake_virtual_tables(self._connection)
        register(self._connection, _VALUE_BYTES)
        for category, limit in (
            (sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES),
            (sqlite3.SQLITE_LIMIT_SQL_LENGTH, _SQL_BYTES),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN_BYTES),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        ):
            self._connection.setlimit(category, limit)
        self._connection.set_authorizer(self._authorize)
        self._clock = _Clock(self._connection)

    def execute(
        self,
        sql: str,
        row_cap: int = 1000,
        timeout_s: float = 5.0,
        most_steps: int | None = None,
    ) -> Result:
        """Run one SELECT and return at most ``row_cap`` rows.

        ``most_steps`` limits SQLite's own instructions, which does not depend on the machine.

        Raises:
            RequestError: the query is empty, does more than read, fails, or is still running after
                ``timeout_s`` seconds or ``most_steps`` steps.
        """
        _check_reads(sql)
        with self._lock:
            self._denied = ""
            try:
                with self._clock.running(timeout_s, most_steps):
                    return self._run(sql, row_cap)
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                raise self._explain(error) from error

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        with self._lock:
            self._clock.close()
            self._connection.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, sql: str, row_cap: int) -> Result:
        cursor = self._connection.execute(sql)
        try:
            columns = tuple(column[0] for column in cursor.description or ())
            rows: list[tuple[object, ...]] = []
            size, truncated = 0, False
            for row in cursor:
                if len(rows) >= row_cap or size > _RESULT_BYTES:
                    truncated = True
                    break
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
        finally:
            cursor.close()
        return Result(columns, rows, truncated, self._clock.seconds())

    def _authorize(
        self, action: int, one: str | None, two: str | None, schema: str | None, trigger: str | None
    ) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (two or "").lower() not in _DENIED_FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {two}"
        elif action == sqlite3.SQLITE_PRAGMA and one in _HARMLESS_PRAGMAS and two is None:
            return sqlite3.SQLITE_OK
        else:
            # A table function that was not woken (pragma_table_info) declares itself by a write.
            is_function = action == sqlite3.SQLITE_UPDATE and one == "sqlite_master"
            self._denied = (
                "a table function"
                if is_function
                else _ACTIONS.get(action, "a change to the database")
            )
        return sqlite3.SQLITE_DENY

    def _explain(self, error: Exception) -> RequestError:
        reason = str(error)
        if self._clock.expired:
            return RequestError(
                f"The query was stopped after {self._clock.bound()}; ask for fewer rows or "
                "raise the time limit."
            )
        if self._denied or "not authorized" in reason:
            what = self._denied or "a change to the database"
            return RequestError(
                f"The query was refused: it uses {what}, and only reading is allowed."
            )
        if "one statement at a time" in reason:
            return RequestError("The query was refused: it holds more than one statement.")
        if any(mark in reason for mark in ("too big", "too large", "user-defined function")):
            return RequestError(f"The query failed: a value is over {_VALUE_BYTES:,} bytes.")
        if "binding" in reason.lower():
            return RequestError(
                "The query failed: it holds a ? or :name placeholder without a value."
            )
        return RequestError(f"The query failed: {reason}.")


def open_database(path: str | Path) -> Database:
    """Open the SQLite database at ``path`` for reading; use as a context manager or close it.

    Raises:
        DataError: it is no readable SQLite database.
    """
    return Database(path)


class _Clock:
    """Interrupts the connection's query once its time is over.

    SQLite's progress handler looks at the clock between instructions; a thread interrupts as well,
    because instructions that sort or read much may be far apart. The thread is one for all queries
    of a connection: starting one for each would cost more than most queries do.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.expired = False
        self.limit = 0.0
        self._steps = 0
        self._most_steps: int | None = None
        self._connection = connection
        self._start = 0.0
        self._deadline: float | None = None
        self._wakes: float | None = None  # when the thread looks next; None is not before told to
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def bound(self) -> str:
        """The limit that was reached, in words."""
        over = self._most_steps is not None and self._steps >= self._most_steps
        return f"{self._most_steps:,} steps" if over else f"{self.limit:g} seconds"

    def _check(self) -> int:
        self._steps += _STEPS_BETWEEN_CHECKS
        over = self._most_steps is not None and self._steps >= self._most_steps
        if self.seconds() < self.limit and not over:
            return 0
        self.expired = True
        return 1

    def _interrupt(self) -> None:
        self.expired = True
        self._connection.interrupt()

    @contextmanager
    def running(self, limit: float, most_steps: int | None = None) -> Iterator[None]:
        """Limit the query of the block to ``limit`` seconds and ``most_steps`` steps."""
        self._steps, self._most_steps = 0, most_steps
        self.expired, self.limit, self._start = False, limit, time.monotonic()
        self._connection.set_progress_handler(self._check, _STEPS_BETWEEN_CHECKS)
        deadline = self._start + limit
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
            self._deadline = deadline
            if self._wakes is None or self._wakes > deadline:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                # Under the lock, so that a late interrupt cannot hit the next query.
                self._deadline = None
            self._connection.set_progress_handler(None, 0)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._deadline = None
                    self._interrupt()
                    continue
                self._wakes = self._deadline
                self._changed.wait(left)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


def _check_reads(sql: str) -> None:
    match = _START.match(sql)
    word = match.group(1) if match else ""
    if word.lower() in _READERS:
        return
    if not sql.strip().strip(";").strip():
        raise RequestError("The query is empty.")
    found = f"begins with {word.upper()}" if word else f"begins with {sql.strip()[:20]!r}"
    raise RequestError(f"The query was refused: it {found}, and only SELECT queries are run.")


def _allow_double_quoted_strings(connection: sqlite3.Connection) -> None:
    # Python 3.12 can set this; before that it is the library's default, except in a few builds.
    setconfig = getattr(connection, "setconfig", None)
    if setconfig is not None:
        setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, True)  # type: ignore[attr-defined]
        setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined]


def _wake_virtual_tables(connection: sqlite3.Connection) -> None:
    # A virtual table prepares statements of its own, writing ones too, when it is first used. The
    # authorizer would refuse them, so each is used once before it is set.
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL%'"
    )
    names = [quote_always(name) for (name,) in found] + ["json_each('[]')", "json_tree('[]')"]
    for name in names:
        try:
            connection.execute(f"SELECT 1 FROM {name} LIMIT 0").fetchall()
        except sqlite3.Error:
            continue  # its module is not in this build: a query that names it will say so
