"""A database's tables, keys and sampled values, at a cost that does not grow with its rows."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hone.core.errors import DataError
from hone.sql.identifiers import quote_always

# Text past this length is cut while sampling; see also schema.LONGEST_SAMPLE.
CUT = 201
_RANGES = 20
_COUNT_UP_TO = 10_000
# A view or a filter may have to read everything before its first row comes out. The limit is in
# instructions of SQLite's virtual machine, so that the same file always gives the same sample.
_STEPS = 4_000_000
_STEPS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class RawTable:
    """A table as SQLite's catalogue lists it. ``columns``: (name, declared type, nullable)."""

    name: str
    kind: str
    sql: str
    has_rowid: bool
    columns: tuple[tuple[str, str, bool], ...]
    primary_key: tuple[str, ...]


def list_tables(connection: sqlite3.Connection, path: Path) -> tuple[list[RawTable], list[str]]:
    """Every table and view a query may name, and one sentence for each that cannot be read.

    Shadow tables (where a full-text index keeps its data) and SQLite's own tables are left out.

    Raises:
        DataError: this Python's SQLite is too old to tell shadow tables apart.
    """
    if sqlite3.sqlite_version_info < (3, 37):
        raise DataError(f"SQLite {sqlite3.sqlite_version} is too old; hone needs 3.37 or newer.")
    order = "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid"
    statements = dict(connection.execute(order).fetchall())
    listed = {
        name: (kind, bool(without_rowid))
        for schema, name, kind, _, without_rowid, _ in connection.execute("PRAGMA table_list")
        if schema == "main" and kind != "shadow" and not name.lower().startswith("sqlite_")
    }
    tables, notes = [], []
    for name, sql in statements.items():
        if name not in listed:
            continue
        kind, without_rowid = listed[name]
        try:
            columns = connection.execute(f"PRAGMA table_xinfo({quote_always(name)})").fetchall()
            connection.execute(f"SELECT 1 FROM {quote_always(name)} LIMIT 0")
        except sqlite3.Error as error:
            notes.append(f"{path}: the {kind} {name!r} was left out: {error}.")
            continue
        key = sorted((c for c in columns if c[5]), key=lambda column: column[5])
        tables.append(
            RawTable(
                name=name,
                kind=kind,
                sql=sql or "",
                has_rowid=kind == "table" and not without_rowid,
                # hidden == 1 marks a virtual table's control columns; 2 and 3 are generated ones.
                columns=tuple((c[1], c[2], not c[3] and not c[5]) for c in columns if c[6] != 1),
                primary_key=tuple(column[1] for column in key),
            )
        )
    return tables, notes


def declared_keys(
    connection: sqlite3.Connection, table: str
) -> list[tuple[str, tuple[str, ...], tuple[str | None, ...]]]:
    """``table``'s foreign keys: (referenced table, columns, referenced columns or None)."""
    grouped: dict[int, list[tuple]] = {}
    for row in connection.execute(f"PRAGMA foreign_key_list({quote_always(table)})"):
        grouped.setdefault(row[0], []).append(row)
    keys = []
    for number in sorted(grouped):
        rows = sorted(grouped[number], key=lambda row: row[1])
        keys.append((rows[0][2], tuple(r[3] for r in rows), tuple(r[4] for r in rows)))
    return keys


def estimate_rows(connection: sqlite3.Connection, table: RawTable) -> int | None:
    """How many rows ``table`` has: exact up to 10,000, else from statistics or the largest rowid.

    None for a view, and for a large table that offers neither.
    """
    if table.kind == "view":
        return None
    name = quote_always(table.name)
    with _bounded(connection):
        counted = _one(
            connection, f"SELECT count(*) FROM (SELECT 1 FROM {name} LIMIT {_COUNT_UP_TO + 1})"
        )
    if counted is None or counted <= _COUNT_UP_TO:
        return counted
    if _one(connection, "SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'"):
        stat = _one(
            connection,
            "SELECT max(CAST(stat AS INTEGER)) FROM sqlite_stat1 WHERE tbl = ?",
            table.name,
        )
        if stat:
            return max(stat, counted)
    span = _rowid_span(connection, table)
    if span is not None:
        return max(span[2] - span[1] + 1, counted)
    return None


def sample(
    connection: sqlite3.Connection, table: RawTable, rows: int, estimate: int | None
) -> list[tuple]:
    """Up to ``rows`` rows, spread over a large table by rowid; blobs come as ``b""``, text cut."""
    name = quote_always(table.name)
    columns = ", ".join(_cheap(column[0]) for column in table.columns)
    if not columns:
        return []
    with _bounded(connection):
        span = _rowid_span(connection, table) if estimate and estimate > rows else None
        if span is None:
            return _fetch(connection, f"SELECT {columns} FROM {name} LIMIT ?", rows)
        rowid, first, last = span
        size = -(-rows // _RANGES)
        found: list[tuple] = []
        start = first
        for part in range(_RANGES):
            start = max(start, first + (last - first) * part // _RANGES)
            if start > last:
                break
            piece = _fetch(
                connection,
                f"SELECT {columns}, {rowid} FROM {name} WHERE {rowid} >= ? "
                f"ORDER BY {rowid} LIMIT ?",
                start,
                size,
            )
            if not piece:
                break
            found += [row[:-1] for row in piece]
            start = piece[-1][-1] + 1
        return found


def _rowid_span(connection: sqlite3.Connection, table: RawTable) -> tuple[str, int, int] | None:
    """What the rowid is called, its least and its greatest value; None where there is none."""
    if not table.has_rowid:
        return None
    taken = {column[0].lower() for column in table.columns}
    rowid = next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)
    if rowid is None:
        return None
    name = quote_always(table.name)
    first = _one(connection, f"SELECT min({rowid}) FROM {name}")
    last = _one(connection, f"SELECT max({rowid}) FROM {name}")
    return None if first is None or last is None else (rowid, first, last)


def _cheap(column: str) -> str:
    name = quote_always(column)
    return (
        f"CASE typeof({name}) WHEN 'blob' THEN x'' WHEN 'text' THEN substr({name}, 1, {CUT}) "
        f"ELSE {name} END"
    )


def _one(connection: sqlite3.Connection, sql: str, *values: object) -> int | None:
    rows = _fetch(connection, sql, *values)
    return rows[0][0] if rows else None


def _fetch(connection: sqlite3.Connection, sql: str, *values: object) -> list[tuple]:
    found: list[tuple] = []
    try:
        for row in connection.execute(sql, values):
            found.append(row)
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
    return found


@contextmanager
def _bounded(connection: sqlite3.Connection) -> Iterator[None]:
    left = _STEPS // _STEPS_AT_ONCE

    def spend() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    connection.set_progress_handler(spend, _STEPS_AT_ONCE)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
