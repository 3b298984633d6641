"""The whole way: the official client, the application, the engine's process, a tiny real model."""

import asyncio
import json
import time

import openai
import pytest
import torch
from chat_zoo import make_chat_tokenizer
from engine_server import running

import hone
from hone.core.files import write_json
from hone.engine.params import SamplingParams
from hone.models import CausalLM, ModelConfig, save_checkpoint

ASK = [{"role": "user", "content": "서울 날씨 어때?"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tokenizer = make_chat_tokenizer("qwen")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.25,
        eos_token_id=tokenizer.eos_id,
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=3)
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_checkpoint(folder, model, tokenizer)
    write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.eos_id})
    return folder


@pytest.fixture(scope="module")
def server(checkpoint):
    with running(checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def settled(server):
    """Wait until nothing runs, and all blocks are free."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        stats = server.client.stats()
        if stats and stats.running == stats.waiting == 0 and stats.blocks == stats.free_blocks:
            return
        time.sleep(0.02)
    raise AssertionError(stats)


def test_an_answer_is_the_models_own(server, api, checkpoint):
    lm = hone.load(checkpoint, exact=False)
    prompt = lm.chat_prompt(ASK)
    (result,) = lm.generate([prompt], SamplingParams(max_tokens=40))
    answer = api.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, temperature=0)
    assert answer.choices[0].message.content == result.text
    assert answer.choices[0].finish_reason == result.finish_reason
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(result.token_ids)
    stream = api.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=40, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == result.text
    # The second time the prompt was in the cache.
    again = api.chat.completions.create(model="tiny", messages=ASK, max_tokens=2)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    settled(server)


def test_a_seed_repeats_an_answer_and_its_samples_differ(api):
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 12, "n": 3, "seed": -5}
    first = [choice.message.content for choice in api.chat.completions.create(**asked).choices]
    again = [choice.message.content for choice in api.chat.completions.create(**asked).choices]
    assert first == again
    assert len(set(first)) == 3


SCHEMA = {
    "type": "object",
    "properties": {"도시": {"enum": ["서울", "부산"]}, "맑음": {"type": "boolean"}},
    "required": ["도시", "맑음"],
    "additionalProperties": False,
}


def test_a_schema_is_kept_by_a_model_that_knows_nothing(api):
    answer = api.chat.completions.create(
        model="tiny",
        messages=ASK,
        n=4,
        max_tokens=200,
        temperature=1.5,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
        },
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content)
        assert value["도시"] in ("서울", "부산")
        assert isinstance(value["맑음"], bool)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_forced_on_a_model_that_knows_nothing(api, stream):
    tool = {"type": "function", "function": {"name": "날씨", "parameters": SCHEMA}}
    answer = api.chat.completions.create(
        model="tiny",
        messages=ASK,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "날씨"}},
        seed=2,
        max_tokens=200,
        stream=stream,
    )
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        parts = [part for choice in choices for part in choice.delta.tool_calls or ()]
        name = parts[0].function.name
        arguments = "".join(part.function.arguments for part in parts)
        reason = choices[-1].finish_reason
    else:
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        reason = answer.choices[0].finish_reason
    assert (name, reason) == ("날씨", "tool_calls")
    assert json.loads(arguments)["도시"] in ("서울", "부산")


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": {"type": "nonsense"}},
        {"guided_json": "{"},
        {"guided_regex": "("},
        {"guided_grammar": "start: nowhere"},
        {"guided_choice": [""]},
        {"guided_json": {"$ref": "https://example.com/schema.json"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_compile_is_a_400(api, fields, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="tiny", messages=ASK, stream=stream, extra_body=fields)
    assert caught.value.type == "invalid_request_error"


def test_log_probabilities_are_the_models(api):
    answer = api.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    for entry in answer.choices[0].logprobs.content:
        values = [one.logprob for one in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.logprob == values[0] <= 0


def test_embeddings_have_length_one(api):
    answer = api.embeddings.create(model="tiny", input=["서울", "부산에 사는 고객", "서울"])
    first, second, third = (item.embedding for item in answer.data)
    assert len(first) == 32
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
    assert first == pytest.approx(third, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-2)


def test_clients_that_leave_give_their_blocks_back(server, api):
    for _ in range(6):
        stream = api.chat.completions.create(
            model="tiny", messages=ASK, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        stream.close()
    settled(server)


def test_a_prompt_and_an_output_that_do_not_fit(api):
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model="tiny", prompt=[5] * 1024)
    assert caught.value.code == "context_length_exceeded"
    answer = api.completions.create(
        model="tiny", prompt=[5] * 1018, max_tokens=100, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens <= 1024


def test_many_at_once_are_all_answered(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as api:

            async def one(number):
                answer = await api.completions.create(
                    model="tiny", prompt=[5 + number, 7], max_tokens=6, temperature=0
                )
                return number, answer.choices[0].text

            first = await asyncio.gather(*(one(number) for number in range(24)))
            alone = [await one(number) for number in range(0, 24, 6)]
            assert [first[number] for number in range(0, 24, 6)] == alone

    asyncio.run(main())
    settled(server)
