import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

MakeDatabase = Callable[..., Path]


@pytest.fixture
def make_database(tmp_path: Path) -> MakeDatabase:
    """Write a database from a script and return its path."""

    def make(script: str, name: str = "made.sqlite") -> Path:
        path = tmp_path / name
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
            connection.commit()
        return path

    return make
