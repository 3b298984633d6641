"""What the engine's process makes of a checkpoint, and where the text side of one lies."""

import json

import pytest
import torch

from hone.adapters import LoraConfig, add_adapter, save_adapter
from hone.core.errors import CheckpointError, HoneError
from hone.engine.options import EngineOptions
from hone.engine.params import SamplingParams
from hone.engine.request import Request
from hone.models import (
    CausalLM,
    ModelConfig,
    StateSpace,
    make_model,
    read_config,
    save_checkpoint,
)
from hone.serve.loading import load_engine
from hone.serve.places import text_directory
from hone.text.tokenizer import Tokenizer

OPTIONS = EngineOptions(block_size=16, max_running=4, cache_bytes=1_000_000)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["안녕 hello 😀"] * 3, 300)


def small_config(tokenizer, **values):
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 200}
    return ModelConfig(tokenizer.vocab_size, 32, 48, eos_token_id=2, **(sizes | values))


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    model = CausalLM(small_config(tokenizer))
    model.initialise(seed=1)
    place = tmp_path_factory.mktemp("loading") / "model"
    save_checkpoint(place, model, tokenizer)
    return place


@pytest.fixture(scope="module")
def adapter(folder, tokenizer, tmp_path_factory):
    model = CausalLM(small_config(tokenizer))
    model.initialise(seed=1)
    add_adapter(model, LoraConfig(r=2), "one")
    place = tmp_path_factory.mktemp("adapters") / "one"
    save_adapter(model, place)
    file = place / "adapter_config.json"
    told = json.loads(file.read_text()) | {"base_model_name_or_path": str(folder)}
    file.write_text(json.dumps(told))
    return place


def answered(engine, request):
    """All tokens of a request."""
    engine.add(request)
    tokens = []
    while engine.busy:
        for delta in engine.step():
            tokens += delta.tokens
    return tokens


def test_a_decoder_and_its_adapters(folder, adapter, tokenizer):
    engine, info = load_engine(str(folder), "우리 모델", OPTIONS, adapters={"one": str(adapter)})
    assert (info.name, info.adapters, info.end_ids) == ("우리 모델", ("one",), (2,))
    assert (info.context, info.longest_prompt, info.answer_start) == (200, 199, None)
    assert (info.vocabulary, info.dtype, info.quantization) == (
        tokenizer.vocab_size,
        "float32",
        None,
    )
    assert (info.generates, info.embeds, info.exact) == (True, True, True)
    # Keys and values of two layers, 32 numbers each, 4 bytes; one block is never given out.
    block = 16 * 2 * 2 * 32 * 4
    blocks = 1_000_000 // block - 1
    assert (info.cache_bytes, info.cache_tokens) == (blocks * block, blocks * 16)
    assert engine.stats().free_blocks == blocks
    assert info.created == int((folder / "config.json").stat().st_mtime)
    params = SamplingParams(max_tokens=3)
    assert len(answered(engine, Request("a", (5, 6, 7), params, adapter="one"))) >= 1


def test_an_int8_cache_holds_more(folder):
    options = EngineOptions(block_size=16, cache_bytes=1_000_000, cache_dtype="int8")
    _, info = load_engine(str(folder), "m", options)
    assert info.cache_dtype == "int8"
    assert 900_000 < info.cache_bytes <= 1_000_000
    assert info.cache_tokens > 5000  # of floats 1,936


def test_guessing_is_named(folder):
    options = EngineOptions(block_size=16, cache_bytes=1_000_000, speculation="ngram")
    engine, info = load_engine(str(folder), "m", options)
    assert info.speculation == "ngram"
    plain, _ = load_engine(str(folder), "m", OPTIONS)
    request = Request("a", (5, 6, 7, 5, 6, 7, 5, 6), SamplingParams(max_tokens=20, ignore_eos=True))
    assert answered(engine, request) == answered(plain, request)


def test_a_model_with_an_encoder(tokenizer, tmp_path):
    values = {
        "model_type": "t5",
        "vocab_size": tokenizer.vocab_size,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 4,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    model = make_model(read_config(values), dtype=torch.float32)
    model.initialise(seed=1)
    save_checkpoint(tmp_path / "t5", model, tokenizer)
    engine, info = load_engine(str(tmp_path / "t5"), "t5", OPTIONS)
    assert (info.answer_start, info.embeds) == (0, False)
    longest = info.longest_prompt or 100
    assert answered(engine, Request("a", (5,) * longest, SamplingParams(max_tokens=3)))


def test_a_model_without_a_bound_on_its_prompts(tokenizer, tmp_path):
    config = small_config(
        tokenizer, model_type="hone", mixer="mamba", state_space=StateSpace(64, 8, rank=3)
    )
    model = CausalLM(config)
    model.initialise(seed=1)
    save_checkpoint(tmp_path / "mamba", model, tokenizer)
    engine, info = load_engine(str(tmp_path / "mamba"), "m", OPTIONS)
    assert (info.longest_prompt, info.cache_bytes, info.cache_tokens) == (None, 0, 0)
    assert answered(engine, Request("a", (5,) * 300, SamplingParams(max_tokens=2)))


def test_the_longest_prompt_is_the_one_that_the_engine_takes(folder):
    engine, info = load_engine(str(folder), "m", OPTIONS)
    params = SamplingParams(max_tokens=1)
    assert answered(engine, Request("fits", (5,) * info.longest_prompt, params))
    with pytest.raises(HoneError, match="Shorten it"):
        engine.add(Request("long", (5,) * (info.longest_prompt + 1), params))


@pytest.mark.smoke
def test_where_the_tokenizer_of_a_model_lies(folder, adapter, tmp_path):
    assert text_directory(folder) == folder
    assert text_directory(adapter) == folder
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter").symlink_to(adapter)
    assert text_directory(run) == folder
    own = tmp_path / "own"
    own.mkdir()
    for file in ("adapter_config.json", "tokenizer.json"):
        (own / file).write_bytes(
            (folder if "token" in file else adapter).joinpath(file).read_bytes()
        )
    assert text_directory(own) == own
    (own / "tokenizer.json").unlink()
    for text, words in (
        ("{}", "base_model_name_or_path is missing"),
        ("[]", "is not a JSON object"),
        ("{", "is not a JSON object"),
        ('{"base_model_name_or_path": "/no/such"}', "/no/such does not exist"),
    ):
        (own / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            text_directory(own)
