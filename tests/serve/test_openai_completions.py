"""Plain completions, embeddings, models and tokens."""

import base64
import math
import struct
import threading

import openai
import pytest
from scripted import ANSWER, make_app, scripted, serving
from starlette.testclient import TestClient

from hone.serve.info import ModelInfo


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
    server[0].answer = ANSWER
    server[0].requests.clear()
    return server[0]


@pytest.fixture(scope="module")
def api(server):
    return server[1]


@pytest.fixture
def direct(engine):
    with TestClient(make_app(engine)) as client:
        yield client


@pytest.mark.smoke
def test_a_text_is_continued_by_16_tokens_at_most(api, engine):
    answer = api.completions.create(model="tiny", prompt="서울은")
    assert answer.object == "text_completion"
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.text == engine.tokenizer.decode(engine.tokenizer.encode(ANSWER)[:16])
    assert engine.requests[0].params.max_tokens == 16
    assert list(engine.requests[0].prompt) == engine.tokenizer.encode("서울은", True)
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("가", 1), (["가", "나다"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2), ([5], 1)],
)
def test_prompts_come_as_texts_or_ids_one_or_several(api, engine, prompt, count):
    engine.answer = lambda request, index: f"{len(request.prompt)}/{index}"
    answer = api.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=50)
    assert [choice.index for choice in answer.choices] == list(range(2 * count))
    by_id = sorted(engine.requests, key=lambda request: int(request.id.rpartition("-")[2]))
    texts = [f"{len(request.prompt)}/{index}" for request in by_id for index in (0, 1)]
    assert [choice.text for choice in answer.choices] == texts
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        assert list(engine.requests[0].prompt) == prompt
    assert answer.usage.prompt_tokens == sum(len(request.prompt) for request in engine.requests)


def test_several_prompts_stream_side_by_side(api, engine):
    engine.answer = lambda request, index: "하나 둘" if request.id.endswith("-0") else "three"
    texts = {0: "", 1: ""}
    for chunk in api.completions.create(
        model="tiny", prompt=["가", "나"], max_tokens=60, stream=True
    ):
        assert chunk.object == "text_completion"
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "하나 둘", 1: "three"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["서울은 ", ["서울은 "], "ids", ["ids"]])
def test_echo_puts_the_prompt_first(api, engine, stream, prompt):
    ids = engine.tokenizer.encode("서울은 ")
    given = {"ids": ids}.get(prompt, prompt) if isinstance(prompt, str) else prompt
    given = [ids] if given == ["ids"] else given
    answer = api.completions.create(
        model="tiny", prompt=given, echo=True, max_tokens=100, stream=stream
    )
    if stream:
        assert "".join(chunk.choices[0].text for chunk in answer) == "서울은 " + ANSWER
    else:
        assert answer.choices[0].text == "서울은 " + ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_older_shape(api, engine, stream):
    answer = api.completions.create(
        model="tiny", prompt="a", logprobs=2, max_tokens=100, stream=stream
    )
    parts = (
        [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    )
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    tops = [top for part in parts for top in part.top_logprobs]
    assert len(tokens) == len(offsets) == len(tops)
    assert all(value == -0.5 for part in parts for value in part.token_logprobs)
    assert all(token in top and len(top) in (2, 3) for token, top in zip(tokens, tops, strict=True))
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert ANSWER[offset:].startswith(token)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "b"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 129}, None),
        ({"prompt": ["a"] * 129}, None),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(direct, fields, param):
    answer = direct.post("/v1/completions", json={"prompt": "a"} | fields)
    assert answer.status_code == 400
    found = answer.json()["error"]["param"]
    assert found == param or found.startswith(f"{param}["), answer.text


def test_a_prompt_must_be_there(direct):
    error = direct.post("/v1/completions", json={"model": "tiny"}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


def test_one_prompt_that_the_engine_refuses_ends_all(api, engine):
    from scripted import refusal

    def answer(request, index):
        if request.id.endswith("-1"):
            raise refusal()
        return ANSWER

    engine.answer = answer
    with pytest.raises(openai.BadRequestError, match="refused"):
        api.completions.create(model="tiny", prompt=["a", "b", "c"])
    assert engine.running == 0


@pytest.mark.parametrize("inputs", ["서울", ["서울", "부산이요"], [3, 4], [[3, 4], [5, 6, 7]]])
def test_embeddings_have_length_one_in_the_order_of_the_inputs(api, engine, inputs):
    # The client asks for base64 by itself, and decodes it.
    answer = api.embeddings.create(model="tiny", input=inputs)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    by_id = sorted(engine.requests, key=lambda request: int(request.id.rpartition("-")[2]))
    for item, request in zip(answer.data, by_id, strict=True):
        assert request.embed
        length = math.sqrt(25 + len(request.prompt) ** 2)
        expected = [3 / length, 4 / length, len(request.prompt) / length]
        assert item.embedding == pytest.approx(expected, abs=1e-6)
    assert answer.usage.prompt_tokens == sum(len(request.prompt) for request in engine.requests)


def test_embeddings_come_as_floats_or_as_bytes(direct):
    body = {"model": "tiny", "input": "서울"}
    floats = direct.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    body["encoding_format"] = "base64"
    text = direct.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(text))) == pytest.approx(floats)
    assert math.fsum(value * value for value in floats) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 2}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": "other"}, "model"),
    ],
)
def test_a_wrong_embedding_request(direct, fields, param):
    answer = direct.post("/v1/embeddings", json={"input": "a"} | fields)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param
    assert direct.post("/v1/embeddings", json={"input": "a", "dimensions": 3}).status_code == 200


def test_many_inputs_run_a_few_at_a_time(direct, engine):
    body = {"input": [f"문장 {number}" for number in range(100)]}
    answer = direct.post("/v1/embeddings", json=body)
    assert len(answer.json()["data"]) == 100


def test_a_model_without_embeddings_or_texts_says_so(engine):
    info = ModelInfo("bert", 512, len(engine.tokenizer), embeds=False, generates=False)
    client = scripted(info=info)
    with TestClient(make_app(client)) as http:
        for path, body in [
            ("/v1/embeddings", {"input": "a"}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ]:
            assert http.post(path, json=body).status_code == 400


def test_models_are_listed_with_their_adapters(api, engine):
    models = list(api.models.list())
    assert [model.id for model in models] == ["tiny", "sql"]
    assert all(model.object == "model" and model.created == 1700000000 for model in models)
    assert all(model.owned_by == "hone" for model in models)
    assert api.models.retrieve("sql").parent == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("no/such model")
    assert caught.value.code == "model_not_found"


def test_the_model_chooses_the_adapter(api, engine):
    for name, adapter in [("tiny", None), ("sql", "sql")]:
        assert api.completions.create(model=name, prompt="a").model == name
        assert engine.requests[-1].adapter == adapter
    with pytest.raises(openai.NotFoundError, match="choose one of tiny, sql"):
        api.completions.create(model="gpt-5", prompt="a")


def test_texts_to_tokens_and_back(direct, engine):
    body = {"model": "tiny", "prompt": "서울에 사는 고객 🌤️", "return_token_strs": True}
    answer = direct.post("/tokenize", json=body).json()
    ids = engine.tokenizer.encode(body["prompt"], True)
    assert answer == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": [engine.tokenizer.id_to_token(index) for index in ids],
    }
    assert direct.post("/detokenize", json={"tokens": ids}).json() == {"prompt": body["prompt"]}
    messages = [{"role": "user", "content": "안녕"}]
    ids = direct.post("/tokenize", json={"messages": messages}).json()["tokens"]
    text = "<|im_start|>user\n안녕<|im_end|>\n<|im_start|>assistant\n"
    assert direct.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/detokenize", {"tokens": [10**8]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_wrong_token_requests(direct, path, body, param):
    answer = direct.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_long_text_is_encoded_in_a_thread(direct, engine):
    text = "서울에 사는 고객은 몇 명이야? " * 2000
    assert direct.post("/tokenize", json={"prompt": text}).json()["tokens"] == (
        engine.tokenizer.encode(text, True)
    )


@pytest.mark.parametrize(("extra", "status"), [({}, 500), ({"guided_regex": "a*"}, 400)])
def test_an_output_that_cannot_go_on_is_an_error(direct, engine, extra, status):
    """The engine's own trouble is a 500; a grammar that cannot be followed is the client's."""
    engine.answer, engine.stuck = "가나", "The model's scores are not numbers."
    try:
        body = {"prompt": "서울", "max_tokens": 10} | extra
        whole = direct.post("/v1/completions", json=body)
        assert whole.status_code == status
        assert whole.headers.get("x-should-retry") == ("false" if status == 500 else None)
        told = whole.json()["error"]
        assert told["type"] == ("server_error" if status == 500 else "invalid_request_error")
        assert (told["message"], told["code"]) == (engine.stuck, "cannot_go_on")
        events = direct.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
        assert events[-3:] == ["data: " + whole.text, "data: [DONE]", ""]
        assert len(events) > 3  # what came before was sent
    finally:
        engine.stuck = ""


def test_what_takes_long_is_done_beside_the_event_loop(direct, engine, monkeypatch):
    from hone.serve.openai import logprobs
    from hone.text.tokenizer import Tokenizer

    seen = []

    def watched(name, before):
        def call(*arguments, **options):
            seen.append((name, threading.current_thread().name.startswith("asyncio_")))
            return before(*arguments, **options)

        return call

    for name in ("encode", "encode_batch"):
        monkeypatch.setattr(Tokenizer, name, watched(name, getattr(Tokenizer, name)))
    monkeypatch.setattr(logprobs, "token_bytes", watched("bytes", logprobs.token_bytes))
    texts = ["서울", "부산에 사는 고객"] * 2_000
    answer = direct.post("/v1/embeddings", json={"input": texts[:40]}).json()
    assert seen == [("encode", False)] * 40
    seen.clear()
    many = direct.post("/v1/embeddings", json={"input": texts[:2000]}).json()
    assert seen == [("encode_batch", True)]
    assert many["data"][0]["embedding"] == answer["data"][0]["embedding"]
    seen.clear()
    direct.post("/v1/completions", json={"prompt": "가", "logprobs": 1})
    assert ("bytes", True) in seen


@pytest.mark.parametrize("form", ["float", "base64"])
def test_an_embedding_that_is_no_number_is_an_error_and_zeros_are_zeros(direct, engine, form):
    vectors = iter([[0.0, 0.0], [math.nan, 1.0]])
    engine.answer = ANSWER
    engine.vector = lambda request: next(vectors)
    try:
        body = {"input": "가", "encoding_format": form}
        (data,) = direct.post("/v1/embeddings", json=body).json()["data"]
        assert data["embedding"] == ([0.0, 0.0] if form == "float" else "AAAAAAAAAAA=")
        answer = direct.post("/v1/embeddings", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    finally:
        engine.vector = None
