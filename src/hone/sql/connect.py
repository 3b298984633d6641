"""Opening a SQLite file for reading, whatever state it is in."""

import sqlite3
from pathlib import Path
from urllib.parse import quote

from hone.core.errors import DataError

_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 5.0


def connect(path: str | Path) -> sqlite3.Connection:
    """A read-only connection to the SQLite database at ``path``.

    A database in write-ahead mode is read with its ``-wal`` file. Where the folder cannot be
    written to, the index of that file is kept in memory. Text that is not UTF-8 is decoded with
    replacement characters.

    Raises:
        DataError: the file is missing, a folder, empty, no SQLite database, encrypted, damaged or
            unreadable.
    """
    path = Path(path)
    _check_file(path)
    first: sqlite3.Error | None = None
    for options in _options(path):
        try:
            return _open(path, options)
        except sqlite3.Error as error:
            first = first or error
    raise DataError(_sentence(path, str(first))) from first


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of a SQLite database file.")
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; give the path of a SQLite database file."
        ) from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"{path} is empty (0 bytes): there is no database in it.")
    if head != _MAGIC:
        raise DataError(
            f"{path} is not a SQLite database, or it is encrypted: its first bytes are {head!r}, "
            f"not {_MAGIC!r}."
        )


def _options(path: Path) -> list[str]:
    options = ["mode=ro"]
    if Path(f"{path}-wal").exists() and Path(f"{path}-wal").stat().st_size:
        # Without a writable folder there is no shared index of the log; this VFS takes no locks, so
        # that the connection may hold the index in its own memory (see _open).
        options.append("mode=ro&vfs=unix-none")
    elif not Path(f"{path}-journal").exists():
        # Nothing is pending beside the file, so it is complete by itself.
        options.append("mode=ro&immutable=1")
    return options


def _open(path: Path, options: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?{options}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if "vfs=" in options:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.text_factory = lambda value: value.decode("utf-8", "replace")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _sentence(path: Path, reason: str) -> str:
    if "unable to open" in reason or "readonly" in reason:
        return (
            f"Cannot open {path} ({reason}): changes wait in a file beside it that cannot be read "
            "here. Copy the database with its -wal or -journal file into a folder that you may "
            "write to."
        )
    if "locked" in reason:
        return f"{path} is locked by another program that writes to it; try again when it is done."
    if "malformed" in reason or "not a database" in reason:
        return f"{path} is damaged or encrypted: SQLite says {reason!r}."
    return f"Cannot open {path}: SQLite says {reason!r}."
