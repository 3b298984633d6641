"""Chat completions through the official client."""

import asyncio
import json

import openai
import pytest
from scripted import ANSWER, make_app, refusal, scripted, serving, until

ASK = [{"role": "user", "content": "서울 날씨 어때?"}]


@pytest.fixture(scope="module")
def server():
    client = scripted()
    with serving(make_app(client)) as url:
        yield client, url


@pytest.fixture
def engine(server):
    client, _ = server
    client.answer, client.together, client.dies_after, client.delay = ANSWER, 1, None, 0.0
    client.requests.clear()
    client.taken_back.clear()
    client.ended.clear()
    return client


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.smoke
def test_an_answer_has_its_text_its_reason_and_its_usage(api, engine):
    answer = api.chat.completions.create(model="tiny", messages=ASK)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    prompt = engine.requests[0].prompt
    written = engine.tokenizer.decode(prompt, skip_special_tokens=False)
    assert written == "<|im_start|>user\n서울 날씨 어때?<|im_end|>\n<|im_start|>assistant\n"
    count = len(engine.tokenizer.encode(ANSWER)) + 1
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == count
    assert answer.usage.total_tokens == len(prompt) + count
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_a_stream_never_cuts_a_character(api, engine, together):
    engine.together = together
    chunks = list(api.chat.completions.create(model="tiny", messages=ASK, stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == ANSWER
    assert not any("�" in text for text in texts)
    if together == 1:
        assert len(chunks) > 10


def test_a_stream_is_framed_as_clients_need_it(server, engine):
    import httpx

    body = {"model": "tiny", "messages": ASK, "stream": True}
    answer = httpx.post(f"{server[1]}/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text.endswith("\n\ndata: [DONE]\n\n")
    events = answer.text.split("\n\n")[:-2]
    assert all(event.startswith("data: {") for event in events)
    chunks = [json.loads(event[6:]) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["created"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert not any("role" in item["delta"] for item in deltas[1:])
    assert all("finish_reason" in item for item in deltas)
    assert [item["finish_reason"] for item in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert not any("usage" in chunk for chunk in chunks)


def test_the_usage_of_a_stream_comes_last_and_only_when_asked_for(api, engine):
    options = {"include_usage": True}
    chunks = list(
        api.chat.completions.create(model="tiny", messages=ASK, stream=True, stream_options=options)
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(engine.tokenizer.encode(ANSWER)) + 1
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("together", [1, 4])
def test_stop_strings_never_leak(api, engine, stream, together):
    engine.together = together
    asked = {"model": "tiny", "messages": ASK, "stop": ["맑아요", "degrees"], "stream": stream}
    answer = api.chat.completions.create(**asked, logprobs=True)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
        shown = [entry for chunk in chunks for entry in chunk.choices[0].logprobs.content]
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        shown = answer.choices[0].logprobs.content
    assert text == "네, 서울은 "
    assert reason == "stop"
    assert b"".join(bytes(entry.bytes) for entry in shown).decode() in ("네, 서울은 ", "네, 서울은")
    # The engine is told at once.
    until(lambda: engine.running == 0)
    assert engine.taken_back == [engine.requests[0].id]


def test_several_outputs_stream_side_by_side(api, engine):
    engine.answer = lambda request, index: ["하나", "둘이에요", "three"][index]
    chunks = list(api.chat.completions.create(model="tiny", messages=ASK, n=3, stream=True))
    texts, reasons = {}, {}
    for chunk in chunks:
        (choice,) = chunk.choices
        assert (choice.index in texts) == (choice.delta.role is None)
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        reasons.setdefault(choice.index, []).append(choice.finish_reason)
    assert texts == {0: "하나", 1: "둘이에요", 2: "three"}
    assert all(found[-1] == "stop" and set(found[:-1]) <= {None} for found in reasons.values())
    whole = api.chat.completions.create(model="tiny", messages=ASK, n=3)
    assert [choice.message.content for choice in whole.choices] == ["하나", "둘이에요", "three"]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]


def test_an_output_that_met_its_stop_string_is_taken_back_while_others_go_on(api, engine):
    engine.answer = lambda request, index: ["a STOP b c d e f g", "one two three"][index]
    whole = api.chat.completions.create(model="tiny", messages=ASK, n=2, stop="STOP")
    assert [choice.message.content for choice in whole.choices] == ["a ", "one two three"]
    assert engine.ended == [(engine.requests[0].id, 0)]


def test_parameters_reach_the_engine(api, engine):
    api.chat.completions.create(
        model="sql",
        messages=ASK,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=-7,
        stop="x",
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        logit_bias={"5": -100, "6": 3.5},
        logprobs=True,
        top_logprobs=4,
        n=2,
        user="ignored",
        metadata={"also": "ignored"},
        service_tier="auto",
        parallel_tool_calls=True,
        extra_body={
            "top_k": 7,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "stop_token_ids": [9],
            "ignore_eos": True,
            "priority": -3,
            "something_new": {"harmless": True},
        },
    )
    (request,) = engine.requests
    params = request.params
    assert (request.adapter, request.priority) == ("sql", -3)
    assert (params.max_tokens, params.min_tokens, params.n) == (9, 2, 2)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.05)
    assert params.seed == 2**63 - 7
    assert params.stops == ("x",)
    assert params.stop_token_ids == (9,)
    assert params.ignore_eos
    assert (params.presence_penalty, params.frequency_penalty) == (0.1, -0.2)
    assert params.repetition_penalty == 1.1
    assert params.logit_bias == {5: -100, 6: 3.5}
    assert params.logprobs == 4


def test_without_parameters_the_temperature_is_openais_and_the_room_is_all(api, engine):
    api.chat.completions.create(model="tiny", messages=ASK)
    params = engine.requests[0].params
    assert (params.temperature, params.max_tokens, params.logprobs) == (1.0, None, None)


def test_log_probabilities_are_told_with_bytes(api, engine):
    answer = api.chat.completions.create(model="tiny", messages=ASK, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == ANSWER
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 3 for entry in content)
    pieces = [entry.token for entry in content]
    assert any(piece.startswith("bytes:\\x") for piece in pieces)  # a part of an emoji
    plain = api.chat.completions.create(model="tiny", messages=ASK, logprobs=True)
    assert all(entry.top_logprobs == [] for entry in plain.choices[0].logprobs.content)


def test_length_is_told_as_the_reason(api, engine):
    answer = api.chat.completions.create(model="tiny", messages=ASK, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_every_form_of_a_message_is_read(api, engine):
    function = {"name": "날씨", "arguments": '{"도시": "서울"}'}
    parts = [{"type": "text", "text": "서"}, {"type": "text", "text": "울"}]
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "developer", "content": "짧게 답해."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "맑음"},
    ]
    api.chat.completions.create(model="tiny", messages=messages)
    text = engine.tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\n짧게 답해.<|im_end|>\n<|im_start|>user\n서울<|im_end|>\n"
        '<|im_start|>assistant\n<think>\n\n</think>\n\n\n<tool_call>\n{"name": "날씨", '
        '"arguments": {"도시": "서울"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n맑음\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_async_client_streams_and_stops(server, engine):
    engine.delay = 0.002

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server[1]}/v1", api_key="none") as api:

            async def one():
                stream = await api.chat.completions.create(model="tiny", messages=ASK, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            assert await asyncio.gather(*(one() for _ in range(8))) == [ANSWER] * 8
            stream = await api.chat.completions.create(model="tiny", messages=ASK, stream=True)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(main())
    until(lambda: engine.running == 0)
    assert engine.taken_back == [engine.requests[-1].id]


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_a_400(api, engine, stream):
    engine.answer = refusal("The JSON schema cannot be used: no.")
    with pytest.raises(openai.BadRequestError, match="JSON schema cannot be used") as caught:
        api.chat.completions.create(model="tiny", messages=ASK, stream=stream)
    assert caught.value.type == "invalid_request_error"


def test_an_engine_that_dies_in_a_stream_is_an_error_event_and_then_done(server, engine):
    import httpx

    engine.dies_after = 3
    body = {"model": "tiny", "messages": ASK, "stream": True}
    answer = httpx.post(f"{server[1]}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    events = answer.text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    error = json.loads(events[-3][6:])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "engine_unavailable")


def test_an_engine_that_dies_before_is_a_503_that_the_client_repeats(server, engine):
    engine.dies_after = 0
    with (
        openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=1) as api,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        api.chat.completions.create(model="tiny", messages=ASK)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    assert len(engine.requests) == 2
