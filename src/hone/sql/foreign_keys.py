"""Foreign keys of a database: the declared ones, or good guesses where nothing is declared."""

import sqlite3
from collections.abc import Sequence

from hone.sql.catalog import RawTable, declared_keys
from hone.sql.identifiers import quote_always

# (table, columns, referenced table, referenced columns, inferred)
Key = tuple[str, tuple[str, ...], str, tuple[str, ...], bool]

_ENDINGS = ("id", "no", "code", "key", "number", "name")
_PROBES = 40
_FOUND = 0.75
# A key column must look unique over this many rows before it counts as one.
_UNIQUE_ROWS = 500
# How much of the other table is looked through for a value.
_POOL = 20_000
# Without a fitting name, this many different words must all but occur among the key's.
_WORDS = 12
_ALL_BUT = 0.95
# Every column is compared with every key only in a small database.
_FEW_TABLES = 20


def find_foreign_keys(connection: sqlite3.Connection, tables: Sequence[RawTable]) -> list[Key]:
    """The declared keys whose ends exist, without repeats; if there are none, the inferred ones."""
    by_name = {table.name.lower(): table for table in tables}
    found: dict[Key, None] = {}
    for table in tables:
        if table.kind != "table":
            continue
        for target, columns, targets in declared_keys(connection, table.name):
            other = by_name.get(target.lower())
            if other is None:
                continue
            # A key without named targets refers to the primary key.
            ends = other.primary_key if None in targets else tuple(t for t in targets if t)
            left = _real_names(table, columns)
            right = _real_names(other, ends)
            if left and right and len(left) == len(right):
                found[(table.name, left, other.name, right, False)] = None
    return list(found) or _infer(connection, tables)


def _real_names(table: RawTable, names: Sequence[str]) -> tuple[str, ...]:
    real = {column[0].lower(): column[0] for column in table.columns}
    if any(name.lower() not in real for name in names):
        return ()
    return tuple(real[name.lower()] for name in names)


def _infer(connection: sqlite3.Connection, tables: Sequence[RawTable]) -> list[Key]:
    real = [table for table in tables if table.kind == "table"]
    targets = [(table, key) for table in real if (key := _key_column(connection, table))]
    found: list[Key] = []
    keys = {table.name: key for table, key in targets}
    for table in real:
        own_key = keys.get(table.name)
        for column, _, _ in table.columns:
            for other, key in targets:
                named = _names_fit(column, other.name, key)
                if other is table or not (named or len(real) <= _FEW_TABLES):
                    continue
                asked, share, words = _overlap(connection, table.name, column, other, key)
                by_name = named and (not asked or share >= _FOUND)
                by_value = column != own_key and words and asked >= _WORDS and share >= _ALL_BUT
                if by_name or by_value:
                    found.append((table.name, (column,), other.name, (key,), True))
                    break
    return found


def _key_column(connection: sqlite3.Connection, table: RawTable) -> str | None:
    """The one column that identifies a row: the primary key, else one named like it and unique."""
    if table.primary_key:
        return table.primary_key[0] if len(table.primary_key) == 1 else None
    stem = _plain(table.name)
    wanted = ["id", stem] + [name + ending for ending in _ENDINGS for name in _singulars(stem)]
    columns = {_plain(column[0]): column[0] for column in table.columns}
    for name in wanted:
        if name in columns and _is_unique(connection, table.name, columns[name]):
            return columns[name]
    return None


def _names_fit(column: str, other: str, key: str) -> bool:
    name, target = _plain(column), _plain(key)
    if name == target:
        # Two tables that both have an "id" are not thereby related.
        return name not in _ENDINGS
    stems = _singulars(_plain(other))
    return any(name in (stem, stem + target) for stem in stems) or (
        target in _ENDINGS and any(name == stem + target for stem in stems)
    )


def _singulars(stem: str) -> list[str]:
    forms = [stem]
    if stem.endswith("ies"):
        forms.append(stem[:-3] + "y")
    if stem.endswith("es"):
        forms.append(stem[:-2])
    if stem.endswith("s"):
        forms.append(stem[:-1])
    return forms


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _is_unique(connection: sqlite3.Connection, table: str, column: str) -> bool:
    name = quote_always(column)
    part = f"SELECT {name} AS v FROM {quote_always(table)} LIMIT {_UNIQUE_ROWS}"
    total, distinct = connection.execute(
        f"SELECT count(*), count(DISTINCT v) FROM ({part})"
    ).fetchone()
    return total == distinct


def _overlap(
    connection: sqlite3.Connection, table: str, column: str, other: RawTable, key: str
) -> tuple[int, float, bool]:
    """How many values of ``table.column`` were tried, the share of them that ``other.key`` has,
    and whether they are words."""
    name, target = quote_always(column), quote_always(key)
    values = (
        f"SELECT DISTINCT v FROM (SELECT {name} AS v FROM {quote_always(table)} "
        f"WHERE {name} IS NOT NULL LIMIT {_UNIQUE_ROWS}) LIMIT {_PROBES}"
    )
    # Without an index every probe reads the other table, so only its first rows are looked at.
    rows = f"SELECT 1 FROM {quote_always(other.name)} WHERE {target} = v"
    pool = f"v IN (SELECT {target} FROM {quote_always(other.name)} LIMIT {_POOL})"
    found = f"EXISTS ({rows})" if other.primary_key else pool
    asked, hits, words = connection.execute(
        f"SELECT count(*), count(CASE WHEN {found} THEN 1 END), "
        f"count(CASE WHEN typeof(v) = 'text' AND v GLOB '*[^0-9. -]*' THEN 1 END) FROM ({values})"
    ).fetchone()
    return asked, hits / asked if asked else 0.0, words == asked
