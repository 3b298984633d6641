"""What is asked of a database: prompts with their grammar, cut-off queries, the server's pane."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hone.core.errors import RequestError
from hone.recipes.assistant import Assistant, PromptBuilder
from hone.recipes.pane import AskedDatabase
from hone.sql import open_database, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database


@dataclass
class Writer:
    """A model that writes what it is told, and remembers what it was asked."""

    text: str
    finish_reason: str = "stop"

    def generate(self, prompts, params):
        self.params = params
        return [self for _ in prompts]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return write_sample_database(tmp_path_factory.mktemp("shop") / "shop.sqlite")


@pytest.mark.smoke
def test_a_question_becomes_rows_under_the_grammar_of_its_slots(shop) -> None:
    writer = Writer(" SELECT COUNT(*) FROM customers WHERE city = {1}")
    with open_database(shop) as database:
        answer = Assistant(writer, database, read_schema(shop)).ask("서울에 사는 고객은 몇 명이야?")
    assert answer.sql == "SELECT COUNT(*) FROM customers WHERE city = '서울'"
    assert answer.error is None
    assert answer.result.rows[0][0] > 0
    (params,) = writer.params
    assert params.grammar.kind == "lark"
    assert '"{1}"' in params.grammar.source
    assert '"{2}"' not in params.grammar.source


def test_a_query_that_was_cut_off_is_not_run(shop) -> None:
    writer = Writer(" SELECT name FROM customers", finish_reason="length")
    with open_database(shop) as database:
        answer = Assistant(writer, database, read_schema(shop)).ask("고객 이름을 모두 알려줘")
    assert answer.result is None
    assert "cut off" in answer.error
    assert "\n" not in answer.error


def test_only_a_whole_number_says_how_many_rows(shop) -> None:
    with open_database(shop) as database:
        build = PromptBuilder(database, read_schema(shop))
    for question, whole in (
        ("상위 5개 상품", True),
        ("가격이 3.5 이상", False),
        ("'가' 찾아줘", False),
    ):
        source = build.grammar(build(question)).source
        rows = next(line for line in source.splitlines() if line.startswith("rows: "))
        assert ('"{1}"' in rows) == whole, question


def test_the_pane_of_the_server(shop) -> None:
    pane = AskedDatabase(shop, SAMPLE_GLOSSARY, ("고객은 몇 명이야?",), rows=2)
    schema = json.loads(json.dumps(pane.schema(), ensure_ascii=False))
    tables = {table["name"]: table for table in schema["tables"]}
    assert "고객" in tables["customers"]["labels"]["ko"]
    assert any(column["primary"] for column in tables["customers"]["columns"])
    assert schema["questions"] == ["고객은 몇 명이야?"]
    question = pane.ask("서울에 사는 고객의 이름은?")
    assert question.prompt.endswith("SQL:")
    sql = pane.query(question, " SELECT name FROM customers WHERE city = {1}")
    found = pane.run(sql)
    assert (len(found["rows"]), found["truncated"], found["error"]) == (2, True, None)
    refused = pane.run("DROP TABLE customers")
    assert refused["rows"] == []
    assert "only SELECT" in refused["error"]
    assert pane.run("SELECT x'00ff', 9007199254740993")["rows"] == [
        ["<2 bytes>", "9007199254740993"]
    ]
    with pytest.raises(RequestError, match="empty"):
        pane.ask("  ")
    pane.close()


def test_the_pane_needs_no_torch() -> None:
    code = "import sys, hone.recipes.pane; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
