"""The playground's page on hone's own server, with an engine that writes what a test gives it."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_zoo import make_chat_tokenizer
from playground_server import ANSWER, Open, finish, running, say

from hone.engine.request import Delta, EngineStats, Request, TokenLogprobs
from hone.recipes.pane import AskedDatabase
from hone.serve.app import AppSettings, create_app
from hone.serve.info import ModelInfo
from hone.serve.keys import KeyRing
from hone.text.conversation import Conversations

TEXT = "네, 서울은 맑아요. 🌤️ **23** degrees"


class Engine:
    """As the engine's client is for the application."""

    state, error = "ready", ""

    def __init__(self) -> None:
        self.tokenizer = make_chat_tokenizer("qwen")
        end = self.tokenizer.eos_id
        assert end is not None
        self.end = end
        self.info = ModelInfo("tiny", 512, len(self.tokenizer), 511, (end,), adapters=("sql",))
        self.text = TEXT
        self.requests: list[Request] = []

    def stats(self) -> EngineStats:
        return EngineStats()

    def end_output(self, request_id: str, index: int) -> None:
        pass

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self.requests.append(request)
        top = request.params.logprobs
        for token in [*self.tokenizer.encode(self.text), self.end]:
            likely = tuple(((token + i) % 300, -0.5 - i) for i in range(top or 0))
            logprobs = [] if top is None else [TokenLogprobs(token, -0.5, likely)]
            reason = "stop" if token == self.end else None
            yield Delta(request.id, tokens=[token], logprobs=logprobs, finish_reason=reason)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    path: Path = tmp_path_factory.mktemp("database") / "가게.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE 매장 (번호 INTEGER PRIMARY KEY, 도시 TEXT);"
            "INSERT INTO 매장 VALUES (1, '서울'), (2, '부산'), (9007199254740993, NULL);"
        )
    engine = Engine()
    database = AskedDatabase(path, examples=("매장은 몇 개야?",))
    app = create_app(
        AppSettings(keys=KeyRing([("me", "s3cret")])),
        engine,
        engine.tokenizer,
        Conversations(engine.tokenizer),
        database,
    )
    with running(app) as address:
        yield address, engine
    database.close()


@pytest.fixture
def page(visit: Open, served: tuple[str, Engine]) -> Any:
    """The page, let in with the key."""
    served[1].text = TEXT
    served[1].requests.clear()
    page = visit(ready=False, url=served[0])
    page.fill("#key", "s3cret")
    page.press("#key", "Enter")
    page.wait_for_selector('#state[data-state="ready"]')
    return page


def test_chat_and_completion_show_every_token(page: Any, served: tuple[str, Engine]) -> None:
    _, engine = served
    page.click("#tab-chat")
    page.select_option("#model", "sql")
    page.fill("#parameter-min_p", "0.1")
    page.fill("#parameter-seed", "5")
    page.fill("#parameter-schema", '{"type": "object"}')
    say(page, "서울 날씨 어때?")
    assert finish(page, usage=False) == TEXT.replace("**", "")
    page.wait_for_selector(".facts >> text=/\\d+ \\+ \\d+ tokens/")
    marked = page.locator(f"{ANSWER} .token").all_text_contents()
    assert "".join(marked) == TEXT.replace("**", "")
    assert len(marked) > 10
    request = engine.requests[0]
    assert (request.adapter, request.owner) == ("sql", "me")
    params = request.params
    assert (params.min_p, params.seed, params.logprobs, params.max_tokens) == (0.1, 5, 5, 256)
    assert params.grammar is not None
    assert params.grammar.kind == "json"
    page.click("#tab-completion")
    page.fill("#prompt", "날씨:")
    page.click("#completion-run")
    page.wait_for_selector("#continuation .facts >> text=/\\d+ \\+ \\d+ tokens/")
    assert "".join(page.locator("#continuation .token").all_text_contents()) == TEXT
    page.hover("#continuation .token >> nth=2")
    assert page.locator("#popover ol >> nth=0 >> li").count() >= 5
    page.fill("#prompt", "날씨 " * 600)
    page.click("#completion-run")
    page.wait_for_selector("#continuation .problem >> text=/^The prompt has .* the most here is/")


def test_the_database_answers(page: Any, served: tuple[str, Engine]) -> None:
    _, engine = served
    engine.text = "SELECT 번호, 도시 FROM 매장"
    assert "번호" in page.text_content("#schema")
    page.click("text=매장은 몇 개야?")
    page.wait_for_selector("#rows td")
    assert page.input_value("#sql") == engine.text
    assert page.locator("#rows td").all_text_contents() == [
        "1", "서울", "2", "부산", "9007199254740993", "NULL",
    ]  # fmt: skip
    assert engine.requests[0].params.grammar is not None
    page.fill("#sql", "DELETE FROM 매장")
    page.click("#run-sql")
    page.wait_for_selector("#trouble >> text=only SELECT queries are run")
