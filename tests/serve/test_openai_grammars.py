"""Grammars of clients: every way to give one; none reaches the engine unchecked, and none holds up
who has another.
"""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest
from scripted import ANSWER, make_app, scripted, serving

from hone.core.errors import RequestError
from hone.engine.params import Grammar
from hone.serve.openai import grammars
from hone.serve.openai.errors import ApiError
from hone.serve.openai.grammars import GrammarCheck

ASK = [{"role": "user", "content": "서울 날씨 어때?"}]


@pytest.fixture(scope="module")
def server():
    client = scripted()
    with (
        serving(make_app(client)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api,
    ):
        yield client, api


@pytest.fixture
def engine(server):
    client, _ = server
    client.answer = ANSWER
    client.requests.clear()
    return client


@pytest.fixture(scope="module")
def api(server):
    return server[1]


WEATHER = {
    "type": "object",
    "properties": {"도시": {"type": "string"}, "기온": {"type": "integer"}},
    "required": ["도시", "기온"],
    "additionalProperties": False,
}


def test_structured_output_parses_with_the_clients_own_helper(api, engine):
    import pydantic

    class Weather(pydantic.BaseModel):
        city: str
        degrees: int

    engine.answer = '{"city": "서울", "degrees": 23}'
    answer = api.chat.completions.parse(model="tiny", messages=ASK, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="서울", degrees=23)
    grammar = engine.requests[0].params.grammar
    assert grammar.kind == "json"
    assert json.loads(grammar.source)["required"] == ["city", "degrees"]


@pytest.mark.parametrize(
    ("extra", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json", '{"type": "object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": WEATHER}}},
            "json",
            json.dumps(WEATHER, ensure_ascii=False),
        ),
        ({"guided_json": WEATHER}, "json", json.dumps(WEATHER, ensure_ascii=False)),
        ({"guided_json": '{"type": "string"}'}, "json", '{"type": "string"}'),
        ({"guided_regex": "[가-힣]+"}, "regex", "[가-힣]+"),
        ({"guided_choice": ["예", "아니요"]}, "choice", '["예", "아니요"]'),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]'),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json", '{"type": "null"}'),
    ],
)  # fmt: skip
def test_every_way_to_say_what_an_output_must_be(api, engine, extra, kind, source):
    api.chat.completions.create(model="tiny", messages=ASK, extra_body=extra)
    grammar = engine.requests[0].params.grammar
    assert (grammar.kind, grammar.source) == (kind, source)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_grammar": "start: nowhere"},
        {"structured_outputs": {"grammar": "("}},
        {"guided_regex": "("},
        {"guided_json": {"type": "nonsense"}},
        {"guided_grammar": 'start: "가"' + "#" * 200_000},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_never_hears_of_a_wrong_one(api, engine, fields, stream):
    for ask in (
        lambda: api.chat.completions.create(
            model="tiny", messages=ASK, stream=stream, extra_body=fields
        ),
        lambda: api.completions.create(model="tiny", prompt="가", stream=stream, extra_body=fields),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.type == "invalid_request_error"
        assert caught.value.body["message"].count("\n") == 0
    assert engine.requests == []


def test_a_call_that_is_forced_has_a_checked_grammar_too(api, engine):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "no"}}}}
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(
            model="tiny",
            messages=ASK,
            tools=[{"type": "function", "function": function}],
            tool_choice="required",
        )
    assert engine.requests == []


def test_one_that_is_known_waits_for_none_that_is_not(monkeypatch):
    checked, go = [], threading.Event()

    def slow(grammar):
        checked.append(grammar.source)
        if grammar.source != "good":
            go.wait(10)
            raise RequestError("The grammar cannot be used: it is too complex.")

    monkeypatch.setattr(grammars, "check_grammar", slow)

    async def main():
        check = GrammarCheck()
        await check(None)
        await check(Grammar("lark", "good"))
        waiting = [
            asyncio.create_task(check(Grammar("lark", f"bad {number}")))
            for number in range(grammars._MOST_WAITING)
        ]
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        await check(Grammar("lark", "good"))
        assert time.perf_counter() - start < 1
        with pytest.raises(ApiError) as refused:
            await check(Grammar("regex", "good"))  # of another kind, so not the same
        assert (refused.value.status, refused.value.retry_after) == (429, 5)
        for task in waiting[1:]:  # clients that leave
            task.cancel()
        await asyncio.sleep(0.05)
        go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], RequestError)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[1:])
        await check(Grammar("regex", "good"))
        assert checked == ["good", "bad 0", "good"]

    asyncio.run(main())


def test_others_are_answered_while_one_is_checked(api, engine, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(grammars, "check_grammar", lambda _: go.wait(10))
    url = str(api.base_url) + "completions"
    body = {"prompt": "가", "max_tokens": 4}
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(
            httpx.post(url, json=body | {"guided_grammar": 'start: "slow"'}, timeout=20)
        )
    )
    asking.start()
    time.sleep(0.1)
    assert httpx.post(url, json=body, timeout=5).status_code == 200
    assert answers == []
    go.set()
    asking.join(10)
    assert answers[0].status_code == 200
