"""Models that only embed, the whole way: the official client, the server, the engine's process."""

import math

import openai
import pytest
from chat_zoo import make_chat_tokenizer
from engine_server import running

import hone
from hone.core.errors import ConfigError
from hone.engine.options import EngineOptions
from hone.models import ModelConfig, make_model, save_checkpoint
from hone.models.sentence import write_sentence_files
from hone.serve.loading import load_engine

TEXTS = ["서울", "부산에 사는 고객은 몇 명인가요?", "How many stores?", "서울"]


def write(folder, pooling="mean", unit=False, causal=False, sentence=True):
    """A tiny checkpoint; as sentence-transformers has them where ``sentence``."""
    tokenizer = make_chat_tokenizer("qwen")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        initializer_range=0.2,
        causal=causal,
        embedding_pooling=pooling,
        unit_length=unit,
        eos_token_id=tokenizer.eos_id,
        model_type="hone",
    )
    model = make_model(config, "embedding" if sentence else "masked")
    model.initialise(seed=1)
    save_checkpoint(folder, model, tokenizer)
    if sentence and not (folder / "modules.json").exists():
        write_sentence_files(folder, config)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("embedder") / "tiny")


@pytest.fixture(scope="module")
def server(checkpoint):
    with running(checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_embeddings_are_the_models_own_at_length_one(api, checkpoint):
    answer = api.embeddings.create(model="tiny", input=TEXTS)
    pipe = hone.pipeline("sentence-embedding", model=str(checkpoint), normalize=True)
    for item, expected in zip(answer.data, pipe(TEXTS), strict=True):
        assert item.embedding == pytest.approx(expected, abs=1e-5)
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
    tokens = make_chat_tokenizer("qwen").encode_batch(TEXTS)
    assert answer.usage.prompt_tokens == sum(map(len, tokens))


def test_the_longest_text_fits_and_one_token_more_does_not(api):
    assert api.embeddings.create(model="tiny", input=[5] * 48).data[0].embedding
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(model="tiny", input=[5] * 49)
    assert caught.value.code == "context_length_exceeded"


def test_whoever_wants_text_hears_that_there_is_none(api):
    for ask in (
        lambda: api.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}]
        ),
        lambda: api.completions.create(model="tiny", prompt="a", stream=True),
    ):
        with pytest.raises(openai.BadRequestError, match="ask it for embeddings"):
            ask()
    assert api.models.list().data[0].id == "tiny"


@pytest.mark.parametrize(
    ("fields", "normal"),
    [
        ({"pooling": "last", "causal": True, "unit": True}, True),
        ({"pooling": "cls"}, False),
        ({"sentence": False}, False),
    ],
)
def test_every_kind_of_embedding_model_is_known(tmp_path, fields, normal):
    folder = write(tmp_path / "model", **fields)
    engine, info = load_engine(str(folder), "m", EngineOptions(max_running=4))
    assert (info.generates, info.embeds, info.longest_prompt, info.context) == (False, True, 48, 48)
    assert engine.stats().blocks == info.cache_bytes == 0
    with pytest.raises(ConfigError, match="embeds texts and writes none"):
        load_engine(str(folder), "m", EngineOptions(), adapters={"a": "b"})
    with pytest.raises(ConfigError, match="embeds texts and writes none"):
        load_engine(str(folder), "m", EngineOptions(speculation="ngram"))
    pipe = hone.pipeline("sentence-embedding", model=str(folder))
    assert (math.hypot(*pipe("서울")) == pytest.approx(1, abs=1e-4)) == normal
