"""Writing the sample shop as a SQLite file: the same bytes on every run."""

import sqlite3
from pathlib import Path

from hone.core.errors import HoneError
from hone.core.files import atomic_path
from hone.sql.sample.shop import Row, shop_rows
from hone.sql.sample.tables import SCHEMA

# Sits beside this file; ``read_schema(path, glossary=SAMPLE_GLOSSARY)`` reads it.
SAMPLE_GLOSSARY = Path(__file__).with_name("glossary.toml")

# The header field that holds the number of the SQLite library that last wrote the file
# (https://www.sqlite.org/fileformat.html, 1.3); fixed, so that machines agree on the bytes.
_LIBRARY_FIELD, _LIBRARY_NUMBER = 96, 3_040_001


def write_sample_database(path: str | Path) -> Path:
    """Write the sample shop (9 tables, over 14,000 rows) to ``path`` and return it.

    An earlier file is replaced, whole or not at all. The tables carry their Korean and English
    names as comments; :data:`SAMPLE_GLOSSARY` says the same as TOML.

    Raises:
        CapacityError: the disk is full.
        HoneError: ``path`` cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            _write(temporary, shop_rows())
        except sqlite3.Error as error:
            raise HoneError(f"Cannot write the sample database {path}: {error}.") from error
        with open(temporary, "r+b") as file:
            file.seek(_LIBRARY_FIELD)
            file.write(_LIBRARY_NUMBER.to_bytes(4, "big"))
    return Path(path)


def _write(path: Path, rows: dict[str, list[Row]]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(SCHEMA)
        connection.execute("BEGIN")
        for table, values in rows.items():
            marks = ", ".join("?" * len(values[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    finally:
        connection.close()
