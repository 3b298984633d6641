import pytest
import torch

from hone.core.errors import RequestError
from hone.engine.options import EngineOptions
from hone.engine.reader import EmbeddingEngine
from hone.engine.request import Request
from hone.models import ModelConfig
from hone.models.readers import Embedder


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        causal=False,
        embedding_pooling="mean",
        initializer_range=0.2,
        model_type="hone",
    )
    made = Embedder(config)
    made.initialise(seed=1)
    return made.eval()


def texts(count):
    return [tuple(1 + (i * 7 + j * 3) % 49 for j in range(1 + i * 5 % 31)) for i in range(count)]


def ask(number, text, **fields):
    return Request(f"t{number}", text, embed=True, **fields)


def run(engine):
    found, order = {}, []
    while engine.busy:
        for delta in engine.step():
            assert delta.finish_reason == "stop"
            found[delta.request] = delta.embedding
            order.append(delta.request)
    return found, order


def test_embeddings_are_those_of_the_model_whatever_the_company(model):
    engine = EmbeddingEngine(model, EngineOptions(max_running=3, max_batch_tokens=50))
    for number, text in enumerate(texts(9)):
        engine.add(ask(number, text))
    found, _ = run(engine)
    for number, text in enumerate(texts(9)):
        with torch.no_grad():
            expected = model(torch.tensor([text])).logits[0]
        torch.testing.assert_close(torch.tensor(found[f"t{number}"]), expected)
    assert engine.stats().steps >= 3
    assert engine.stats().prompt_tokens == sum(map(len, texts(9)))


def test_priorities_and_taking_back(model):
    engine = EmbeddingEngine(model, EngineOptions(max_running=1))
    for number, text in enumerate(texts(4)):
        engine.add(ask(number, text, priority=-number))
    engine.abort("t2")
    engine.abort("unknown")
    assert run(engine)[1] == ["t3", "t1", "t0"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(0, ()), "empty"),
        (ask(0, (1,) * 41), "41 tokens; this model reads 40"),
        (ask(0, (50,)), r"outside 0\.\.49"),
        (Request("t0", (1,)), "nothing else"),
    ],
)
def test_what_cannot_be_embedded_is_refused(model, request_, message):
    engine = EmbeddingEngine(model)
    with pytest.raises(RequestError, match=message):
        engine.add(request_)
    assert not engine.busy
