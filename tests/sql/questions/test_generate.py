import hashlib
import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from hone.sql import Database, Schema
from hone.sql.canonical import canonical_sql
from hone.sql.hardness import hardness
from hone.sql.questions import KINDS, Example, generate, is_held_out, patterns

Shop = tuple[Schema, Database]
SPLIT_OF = {pattern.name: pattern.split for pattern in patterns()}


@pytest.fixture(scope="module")
def train(shop: Shop) -> list[Example]:
    return generate(*shop, seed=1, count=2400, split="train")


@pytest.fixture(scope="module")
def queries(shop: Shop) -> list[Example]:
    return generate(*shop, seed=1, count=300, split="unseen_queries")


@pytest.fixture(scope="module")
def phrasings(shop: Shop) -> list[Example]:
    return generate(*shop, seed=1, count=300, split="unseen_phrasings")


def _kind(example: Example) -> str:
    return example.pattern.split("/")[0]


@pytest.mark.smoke
def test_a_few_questions(shop: Shop) -> None:
    examples = generate(*shop, seed=5, count=40, split="train")
    assert len(examples) == 40
    assert {example.language for example in examples} == {"ko", "en"}


def test_every_kind_appears_in_each_language(train: list[Example]) -> None:
    counts = Counter((_kind(example), example.language) for example in train)
    assert set(counts) == {(kind, language) for kind in KINDS for language in ("ko", "en")}
    assert max(counts.values()) <= 4 * min(counts.values())
    assert {example.hardness for example in train} == {"easy", "medium", "hard", "extra"}


def test_every_kind_of_clause_appears(train: list[Example]) -> None:
    text = "\n".join(example.sql for example in train)
    for clause in (
        "BETWEEN", "LIKE", " IN (", "IS NULL", "IS NOT NULL", " OR ", " AND ", "COUNT(*)", "SUM(",
        "AVG(", "MIN(", "MAX(", "COUNT(DISTINCT", "SELECT DISTINCT", "GROUP BY", "HAVING",
        "ORDER BY", "LIMIT", "JOIN", "NOT IN (SELECT", "IN (SELECT", "NOT EXISTS", "EXISTS",
        "UNION", "INTERSECT", "EXCEPT", "STRFTIME", "!=", ">=", "<=",
    ):  # fmt: skip
        assert clause in text, clause
    assert any(example.sql.count("JOIN") == 2 for example in train)


def test_golds_run_and_say_something(
    shop: Shop, train: list[Example], queries: list[Example], phrasings: list[Example]
) -> None:
    golds = {example.sql for example in (*train, *queries, *phrasings)}
    empty = 0
    for sql in golds:
        rows = shop[1].execute(sql, row_cap=5).rows
        empty += not rows or (len(rows) == 1 and set(rows[0]) <= {None, 0})
    assert empty < 0.03 * len(golds)


def test_golds_are_spelt_canonically(shop: Shop, train: list[Example]) -> None:
    for sql in sorted({example.sql for example in train})[::4]:
        assert canonical_sql(sql, shop[0]) == sql


def test_hardness_is_that_of_the_query(train: list[Example]) -> None:
    for example in train[::23]:
        assert example.hardness == hardness(example.sql)


def test_the_splits_share_no_query_and_no_frame(
    train: list[Example], queries: list[Example], phrasings: list[Example]
) -> None:
    trained = {example.sql for example in train}
    for examples, side in ((train, "train"), (queries, "train"), (phrasings, "held_out")):
        assert {SPLIT_OF[example.pattern] for example in examples} == {side}
    for example in (*queries, *phrasings):
        assert example.sql not in trained
        assert is_held_out(example.sql)
    assert not any(is_held_out(sql) for sql in trained)
    assert {example.split for example in phrasings} == {"unseen_phrasings"}


def test_held_out_sets_cover_the_kinds(queries: list[Example], phrasings: list[Example]) -> None:
    for examples in (queries, phrasings):
        counts = Counter(map(_kind, examples))
        assert len(counts) >= 0.9 * len(KINDS)
        assert max(counts.values()) < 0.08 * len(examples)
        languages = Counter(example.language for example in examples)
        assert languages["ko"] == languages["en"]


def test_questions_are_clean_and_mean_one_thing(train: list[Example]) -> None:
    meaning: dict[str, str] = {}
    for example in train:
        question = example.question
        assert question == unicodedata.normalize("NFC", question).strip()
        assert "{" not in question
        assert "  " not in question
        assert re.search(r"(을/를|이/가|은/는|과/와|으로/로|이나/나|이야/야)", question) is None
        assert meaning.setdefault(question, example.sql) == example.sql
    assert len(meaning) == len(train)
    assert 6 <= sum(len(question.split()) for question in meaning) / len(meaning) <= 16


def test_values_are_said_as_they_are_stored(train: list[Example]) -> None:
    for example in train:
        for value in re.findall(r"'((?:[^']|'')*)'", example.sql):
            plain = value.replace("''", "'").strip("%")
            dated = re.fullmatch(r"(\d{4})(-\d\d)?|Y(-%m)?", plain)
            assert dated or plain in example.question, example


def test_korean_in_korean_and_english_in_english(train: list[Example]) -> None:
    for example in train:
        rest = example.question
        for value in re.findall(r"'((?:[^']|'')*)'", example.sql):
            rest = rest.replace(value.strip("%"), "")
        assert (re.search("[가-힣]", rest) is not None) is (example.language == "ko"), example


def test_the_seed_decides_everything(shop: Shop, train: list[Example], tmp_path: Path) -> None:
    assert generate(*shop, seed=1, count=200, split="train") == train[:200]
    assert generate(*shop, seed=2, count=200, split="train") != train[:200]
    code = (
        "import json, hashlib, sys\n"
        "from dataclasses import asdict\n"
        "from hone.sql import open_database, read_schema\n"
        "from hone.sql.questions import generate\n"
        "from hone.sql.sample import SAMPLE_GLOSSARY\n"
        "path = sys.argv[1]\n"
        "schema = read_schema(path, SAMPLE_GLOSSARY)\n"
        "found = generate(schema, open_database(path), seed=1, count=200, split='train')\n"
        "text = json.dumps([asdict(e) for e in found])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    environment = {"PYTHONHASHSEED": "12345", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(shop[1].path)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    here = json.dumps([asdict(example) for example in train[:200]])
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_languages_and_exclusions(shop: Shop) -> None:
    korean = generate(*shop, seed=3, count=120, split="train", languages=("ko",))
    assert {example.language for example in korean} == {"ko"}
    banned = {example.sql for example in korean}
    others = generate(*shop, seed=3, count=120, split="train", exclude_sql=banned)
    assert not banned & {example.sql for example in others}


@pytest.mark.parametrize(
    ("split", "languages", "count"),
    [("test", ("ko",), 1), ("train", (), 1), ("train", ("fr",), 1), ("train", ("en",), 0)],
)
def test_wrong_requests_are_refused(
    shop: Shop, split: str, languages: tuple[str, ...], count: int
) -> None:
    with pytest.raises(ValueError, match=r"unknown split|cannot write"):
        generate(*shop, seed=1, count=count, split=split, languages=languages)  # type: ignore[arg-type]
