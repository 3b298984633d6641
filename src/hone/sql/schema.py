"""A database's schema as the rest of hone sees it: names, kinds, keys, sampled values, labels."""

import math
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hone.core.errors import DataError
from hone.sql import catalog
from hone.sql.comments import read_comments
from hone.sql.connect import connect
from hone.sql.foreign_keys import find_foreign_keys
from hone.sql.glossary import Glossary, Labels, labels_for, read_glossary
from hone.sql.identifiers import quote_identifier

__all__ = [
    "Column",
    "ForeignKey",
    "Kind",
    "Labels",
    "Schema",
    "Table",
    "quote_identifier",
    "read_schema",
]

Kind = Literal["integer", "real", "text", "date", "datetime", "boolean", "blob"]
LONGEST_SAMPLE = 200
_SAMPLES = 200
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATETIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
# NUMERIC without decimals is what old dumps call an integer.
_FRACTIONS = re.compile(r"REAL|FLOA|DOUB|\(\d+\s*,\s*[1-9]")
# A column is of the kind that this share of its values has; the rest is dirt.
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class Column:
    """A column. ``samples`` are up to 200 distinct non-null values of its kind, as SQLite has them.

    ``distinct`` counts the distinct values among the sampled rows (None where none were read), and
    ``null_fraction`` is the share of NULLs among them.
    """

    name: str
    type: str
    kind: Kind
    nullable: bool
    samples: tuple[int | float | str, ...]
    distinct: int | None
    null_fraction: float
    labels: Labels


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``table.columns`` refer to ``ref_table.ref_columns``; inferred when no key is declared."""

    table: str
    columns: tuple[str, ...]
    ref_table: str
    ref_columns: tuple[str, ...]
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view. ``rows`` is exact up to 10,000, else an estimate; None where unknown."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    is_view: bool
    rows: int | None
    labels: Labels


@dataclass(frozen=True, slots=True)
class Schema:
    """All tables in the order of their creation. ``notes`` say what was left out, and why."""

    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...]
    glossary_hash: str | None = None
    notes: tuple[str, ...] = ()

    def table(self, name: str) -> Table | None:
        """The table called ``name``, in any case; None if there is none."""
        lowered = name.lower()
        return next((table for table in self.tables if table.name.lower() == lowered), None)

    def column(self, table: str, name: str) -> Column | None:
        """The column ``table.name``, in any case; None if there is none."""
        found = self.table(table)
        lowered = name.lower()
        columns = found.columns if found else ()
        return next((column for column in columns if column.name.lower() == lowered), None)


def read_schema(
    path: str | Path, glossary: str | Path | None = None, sample_rows: int = 2000
) -> Schema:
    """Read the schema of the database at ``path``, and at most ``sample_rows`` rows of a table.

    The cost does not grow with the number of rows. Foreign keys are the declared ones; where a
    database declares none at all, they are inferred from names and checked on sampled values.

    Raises:
        DataError: the file is no readable SQLite database, or it has no tables.
        ConfigError: the glossary is wrong or names what the database does not have.
    """
    path = Path(path)
    with closing(connect(path)) as connection:
        try:
            return _read(connection, path, glossary, sample_rows)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise DataError(f"Cannot read the schema of {path}: {error}.") from error


def _read(
    connection: sqlite3.Connection, path: Path, glossary: str | Path | None, sample_rows: int
) -> Schema:
    raw_tables, notes = catalog.list_tables(connection, path)
    if not raw_tables:
        left = f" ({notes[0]})" if notes else ""
        raise DataError(f"{path} has no tables to ask about{left}.")
    names = {table.name: [column[0] for column in table.columns] for table in raw_tables}
    words = read_glossary(Path(glossary), names) if glossary else Glossary()
    tables = tuple(_table(connection, raw, words, sample_rows) for raw in raw_tables)
    keys = [ForeignKey(*key) for key in find_foreign_keys(connection, raw_tables)]
    return Schema(tables, tuple(keys), words.hash, tuple(notes))


def _table(
    connection: sqlite3.Connection, raw: catalog.RawTable, words: Glossary, sample_rows: int
) -> Table:
    estimate = catalog.estimate_rows(connection, raw)
    rows = catalog.sample(connection, raw, sample_rows, estimate)
    comments = read_comments(raw.sql) if raw.kind == "table" else None
    columns = []
    for place, (name, declared, nullable) in enumerate(raw.columns):
        given = words.columns.get(f"{raw.name}.{name}".lower())
        comment = comments.columns.get(name.lower(), "") if comments else ""
        labels = labels_for(name, given, comment)
        columns.append(_column(name, declared, nullable, [row[place] for row in rows], labels))
    labels = labels_for(
        raw.name, words.tables.get(raw.name.lower()), comments.table if comments else ""
    )
    is_view = raw.kind == "view"
    return Table(raw.name, tuple(columns), raw.primary_key, is_view, estimate, labels)


def _column(
    name: str, declared: str, nullable: bool, values: Sequence[object], labels: Labels
) -> Column:
    present = [value for value in values if value is not None]
    kind = column_kind(declared, present)
    wanted = (str,) if kind in ("text", "date", "datetime") else (int, float)
    distinct = dict.fromkeys(present)
    samples = [
        value
        for value in distinct
        if isinstance(value, wanted) and kind != "blob" and _usable(value)
    ]
    return Column(
        name=name,
        type=declared,
        kind=kind,
        nullable=nullable,
        samples=tuple(_spread(samples)),
        distinct=len(distinct) if values else None,
        null_fraction=1 - len(present) / len(values) if values else 0.0,
        labels=labels,
    )


def _spread(samples: list) -> list:
    """At most 200, evenly from the first to the last."""
    count = min(len(samples), _SAMPLES)
    return [samples[place * len(samples) // count] for place in range(count)]


def _usable(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or len(value) <= LONGEST_SAMPLE


def column_kind(declared: str, values: Sequence[object]) -> Kind:
    """The kind of a column from its declared type and its non-null sampled values.

    SQLite lets any column hold anything, so values win over the declaration; without values the
    declaration decides, by SQLite's own rules of affinity (https://www.sqlite.org/datatype3.html).
    """
    upper = declared.upper()
    if not values:
        return _declared_kind(upper)
    most = _MOST * len(values)
    if sum(isinstance(value, bytes) for value in values) >= most:
        return "blob"
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) >= most:
        if "BOOL" in upper and all(value in (0, 1) for value in numbers):
            return "boolean"
        whole = all(isinstance(value, int) for value in numbers)
        return "integer" if whole and not _FRACTIONS.search(upper) else "real"
    texts = [value for value in values if isinstance(value, str)]
    if sum(_DATE.fullmatch(value) is not None for value in texts) >= most:
        return "date"
    if sum(_DATETIME.fullmatch(value) is not None for value in texts) >= most:
        return "datetime"
    return "text"


def _declared_kind(upper: str) -> Kind:
    rules: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("boolean", ("BOOL",)),
        ("datetime", ("DATETIME", "TIMESTAMP")),
        ("date", ("DATE",)),
        ("integer", ("INT",)),
        ("text", ("CHAR", "CLOB", "TEXT")),
        ("blob", ("BLOB",)),
        ("real", ("REAL", "FLOA", "DOUB", "DEC", "NUM")),
    )
    return next((kind for kind, marks in rules if any(mark in upper for mark in marks)), "text")
