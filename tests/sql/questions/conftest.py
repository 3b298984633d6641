import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hone.sql import Database, Schema, open_database, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database

Shop = tuple[Schema, Database]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = write_sample_database(tmp_path_factory.mktemp("questions") / "shop.sqlite")
    with open_database(path) as database:
        yield read_schema(path, SAMPLE_GLOSSARY), database


@pytest.fixture
def make_database(tmp_path: Path) -> Callable[[str], Shop]:
    """A function that writes a database from a script and opens it."""

    def make(script: str) -> Shop:
        path = tmp_path / "made.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        return read_schema(path), open_database(path)

    return make
