import hashlib
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from hone.sql import read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_database(tmp_path_factory.mktemp("shop") / "shop.sqlite")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.smoke
def test_it_looks_like_a_shop(shop: Path) -> None:
    with closing(sqlite3.connect(shop)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        names = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        rows = sum(
            connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names
        )
        nulls = connection.execute("SELECT COUNT(*) FROM customers WHERE email IS NULL").fetchone()
    schema = read_schema(shop)
    assert len(names) >= 6
    assert 12_000 <= rows <= 20_000
    assert nulls[0] > 50
    assert len(schema.foreign_keys) >= 10
    assert any(key.table == key.ref_table for key in schema.foreign_keys)
    assert {column.kind for table in schema.tables for column in table.columns} >= {
        "integer",
        "text",
        "date",
    }


def test_values_are_korean_and_english(shop: Path) -> None:
    with closing(sqlite3.connect(shop)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM customers")]
    korean = sum(re.search("[가-힣]", name) is not None for name in names)
    assert 0.05 < 1 - korean / len(names) < 0.5


def test_the_bytes_are_the_same_in_another_process(shop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    code = f"from hone.sql.sample import write_sample_database as w; w({str(other)!r})"
    start = time.monotonic()
    environment = {"PYTHONHASHSEED": "7", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert time.monotonic() - start < 20
    assert _digest(other) == _digest(shop)


def test_comments_and_glossary_name_the_same_things(shop: Path) -> None:
    by_comment, by_glossary = read_schema(shop), read_schema(shop, SAMPLE_GLOSSARY)
    assert by_comment.tables == by_glossary.tables
    assert by_glossary.glossary_hash is not None
    for table in by_comment.tables:
        for labels in (table.labels, *(column.labels for column in table.columns)):
            assert labels.en[0].isascii()
            assert re.search("[가-힣]", labels.ko[0])


def test_display_names_are_different_within_a_table(shop: Path) -> None:
    for table in read_schema(shop).tables:
        for language in ("en", "ko"):
            labels = [name for column in table.columns for name in getattr(column.labels, language)]
            assert len(labels) == len(set(labels)), table.name


def test_an_earlier_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    path.write_text("old")
    write_sample_database(path)
    assert path.read_bytes().startswith(b"SQLite format 3")
    assert list(tmp_path.iterdir()) == [path]
