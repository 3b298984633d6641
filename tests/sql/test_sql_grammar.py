"""No invalid SQL comes out of the grammar, and what is asked in practice is in it."""

import json
import random
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hone.engine.notation import ByteVocabulary, compiled
from hone.sql import SqlGrammar, canonical_sql, open_database, read_schema
from hone.sql.questions import generate
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database
from hone.text.prompts import Prompt, Slot

KOREAN = """
CREATE TABLE 고객 (번호 INTEGER PRIMARY KEY, 이름 TEXT, "도시 이름" TEXT);
CREATE TABLE 주문 (번호 INTEGER PRIMARY KEY, 고객번호 INTEGER REFERENCES 고객(번호), 금액 INTEGER);
INSERT INTO 고객 VALUES (1, '김', '서울');
INSERT INTO 주문 VALUES (1, 1, 3000);
"""
ODD = """
CREATE TABLE "order" ("select" INTEGER PRIMARY KEY, "group by" TEXT, "it's" TEXT, "a""b" REAL,
  "{1}" TEXT, "x.y" INT, "%" INT, "new
line" INT, "T1" INT, "é" INT, "1st" INT, "back\\slash" INT, "/" INT, "COUNT" INT, "desc" INT);
CREATE TABLE T1 ("order" INTEGER REFERENCES "order"("select"), "from" INT, T2 TEXT, "a b" INT);
CREATE TABLE "t 2" (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES "t 2"(id), T1 INT);
CREATE TABLE "table""quote" (x INTEGER REFERENCES "t 2"(id), y INTEGER REFERENCES "t 2"(id));
CREATE VIEW "a view" AS SELECT x, y AS "count(*)" FROM "table""quote";
"""
KEYS = """
CREATE TABLE p (a INT, b INT, c INT, PRIMARY KEY (a, b));
CREATE TABLE q (a INT REFERENCES r(a), b INT, d INT, FOREIGN KEY (a, b) REFERENCES p(a, b),
  FOREIGN KEY (a) REFERENCES p(a));
CREATE TABLE r (a INTEGER PRIMARY KEY, e INT REFERENCES q(d));
CREATE VIRTUAL TABLE docs USING fts5(title, body);
CREATE TABLE made (a INT, b INT GENERATED ALWAYS AS (a * 2));
"""
UNLINKED = """
CREATE TABLE a (x INT, y TEXT); CREATE TABLE b (x INT, z TEXT); CREATE TABLE c (w BLOB);
CREATE TABLE abs (abs INT, "ABS(" INT); CREATE TABLE aa (x INT); CREATE TABLE "a.x" (x INT);
CREATE TABLE "a T1" (x INT);
"""
SLOTS = (Slot("12", "number"), Slot("O'Brien \" -- x", "text"), Slot("2024-01-02", "date"))
TOKENIZER = ByteVocabulary().tokenizer()


def accepts(matcher, sql: str) -> bool:
    matcher = matcher.deep_copy()
    spelt = list(sql.encode())
    return matcher.try_consume_tokens(spelt) == len(spelt) and matcher.is_accepting()


def walk(matcher, draw: random.Random, most: int = 6000) -> str | None:
    """A query that is written at random; None where it is too long to go on."""
    matcher, out = matcher.deep_copy(), bytearray()
    while not matcher.is_stopped():
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        found = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        assert not matcher.is_error(), matcher.get_error()
        if matcher.is_accepting() and draw.random() < 0.05:
            break
        assert len(found), out.decode()
        if len(out) > most:
            return None
        found = found[found < 256]
        # Strings are left early: what they hold says little.
        leave = 39 in found and draw.random() < 0.4
        out.append(39 if leave else int(draw.choice(list(found))))
        assert matcher.consume_token(out[-1])
    return out.decode()


def matcher_of(path: Path, slots: int, whole: tuple[int, ...] = (), glossary: Path | None = None):
    found = compiled(TOKENIZER, SqlGrammar(read_schema(path, glossary))(slots, whole))
    assert not isinstance(found, str), found
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return write_sample_database(tmp_path_factory.mktemp("shop") / "shop.sqlite")


@pytest.mark.parametrize(
    ("script", "count"),
    [
        (KOREAN, 25),
        (ODD, 25),
        (KEYS, 25),
        (UNLINKED, 25),
        ("CREATE TABLE 하나 (a)", 20),
        (None, 20),
    ],
    ids=["korean", "odd", "keys", "unlinked", "one", "shop"],
)
def test_whatever_is_written_at_random_runs(make_database, shop, script, count) -> None:
    path = shop if script is None else make_database(script)
    matcher, draw = matcher_of(path, len(SLOTS), (1,)), random.Random(7)
    whole = 0
    with closing(sqlite3.connect(path)) as connection:
        for _ in range(count):
            template = walk(matcher, draw)
            if template is not None:
                whole += 1
                connection.execute("EXPLAIN " + Prompt("", SLOTS).fill(template))
    assert whole > 0.9 * count


def test_every_kind_of_question_is_in_the_grammar(shop) -> None:
    schema = read_schema(shop, SAMPLE_GLOSSARY)
    matcher = matcher_of(shop, 0, (), SAMPLE_GLOSSARY)
    with open_database(shop) as database:
        made = generate(schema, database, seed=3, count=120, split="train")
    refused = [example.sql for example in made if not accepts(matcher, example.sql)]
    assert not refused


def test_what_the_database_would_refuse_is_not(shop) -> None:
    matcher = matcher_of(shop, 1)
    for sql in (
        "SELECT name FROM customers WHERE city = {1}",
        "SELECT customers.name FROM orders JOIN customers ON orders.customer_id = customers.id",
        " SELECT COUNT(*) FROM stores",
        "SELECT name FROM customers LIMIT 3",
    ):
        assert accepts(matcher, sql), sql
    for sql in (
        "SELECT name FROM customers WHERE city = {2}",  # no such slot
        "SELECT name FROM customers LIMIT {1}",  # which is no whole number
        "SELECT price FROM customers",  # a column of another table
        "SELECT name FROM nobody",
        "SELECT name FROM orders JOIN customers ON orders.customer_id = customers.id",
        "SELECT name FROM customers WHERE COUNT(*) > 1",
        "SELECT name FROM customers ORDER BY COUNT(*)",
        "SELECT name FROM customers UNION SELECT name, city FROM stores",
        "SELECT name FROM customers WHERE id IN (SELECT id, name FROM stores)",
        "SELECT name FROM customers WHERE city = '{7}'",
        "SELECT name FROM customers; DROP TABLE customers",
        "SELECT name FROM customers WHERE",
        "DELETE FROM customers",
    ):
        assert not accepts(matcher, sql), sql


def test_what_people_ask_of_real_databases(hone_data) -> None:
    """Some of Spider's databases and a sixth of GeoQuery, in canonical form."""
    asked: dict[Path, list[str]] = defaultdict(list)
    lines = (hone_data / "spider" / "questions.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        asked[hone_data / "spider" / "database" / f"{record['db_id']}.sqlite"].append(record["sql"])
    few = dict(list(asked.items())[::48])
    lines = (hone_data / "text2sql_domains" / "geography.jsonl").read_text().splitlines()
    geography = hone_data / "text2sql_domains" / "geography.sqlite"
    few[geography] = [json.loads(line)["sql"] for line in lines][::6]
    shares = {path: _share(path, queries) for path, queries in few.items()}
    spider = [found for path, found in shares.items() if path != geography]
    assert sum(found for found, _ in spider) >= 0.95 * sum(total for _, total in spider)
    assert shares[geography][0] >= 0.85 * shares[geography][1]


def _share(path: Path, queries: list[str]) -> tuple[int, int]:
    schema, matcher = read_schema(path), matcher_of(path, 0)
    canonical = {canonical_sql(sql, schema) for sql in queries}
    return sum(accepts(matcher, sql) for sql in canonical), len(canonical)
