"""Embeddings pooled from chunks, against those of whole texts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.engine import SamplingParams
from hone.engine.embeddings import Pooler
from hone.engine.engine import Engine, EngineOptions
from hone.engine.request import Request
from hone.models import CausalLM, ModelConfig
from hone.models.readers import Embedder, pool

CONFIG = ModelConfig(50, 32, 48, 2, 4, 2, max_position_embeddings=64)


@settings(max_examples=40, deadline=None)
@given(
    pooling=st.sampled_from(["mean", "cls", "last"]),
    chunks=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_chunks_are_pooled_as_the_whole_is(pooling, chunks, dtype):
    count = sum(chunks)
    hidden_NE = torch.randn(count, 32, generator=torch.Generator().manual_seed(count)).to(dtype)
    pooler, whole = (Pooler(replace(CONFIG, embedding_pooling=pooling)) for _ in range(2))
    for chunk in hidden_NE.split(chunks):
        pooler.add(chunk)
    whole.add(hidden_NE)
    expected = pool(hidden_NE.float(), [count], pooling)[0]
    torch.testing.assert_close(torch.tensor(pooler.result()), expected, rtol=1e-5, atol=1e-6)
    assert pooler.result() == whole.result()


@pytest.mark.smoke
def test_a_pooling_by_tokens_is_refused():
    with pytest.raises(ConfigError, match="'eos'"):
        Pooler(replace(CONFIG, embedding_pooling="eos"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_engine_embeds_as_a_model_with_that_head(pooling, tokenizer):
    config = replace(CONFIG, embedding_pooling=pooling)
    causal, embedder = CausalLM(config), Embedder(config)
    causal.initialise(seed=3)
    embedder.model.load_state_dict(causal.model.state_dict())
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(50, (n,), generator=generator) for n in (40, 3, 17, 1, 29)]
    # Few tokens a step, so that texts are read in chunks, and beside one that is continued.
    engine = Engine(causal.eval(), tokenizer, options=EngineOptions(max_batch_tokens=16))
    for number, ids in enumerate(texts):
        engine.add(Request(str(number), tuple(ids.tolist()), embed=True))
    engine.add(Request("other", (4, 5, 6), SamplingParams(max_tokens=9)))
    found = {}
    while engine.busy:
        for delta in engine.step():
            if delta.embedding is not None:
                found[delta.request] = delta.embedding
    assert len(found) == len(texts)
    with torch.inference_mode():
        for number, ids in enumerate(texts):
            expected = embedder.eval()(ids[None]).logits[0]
            torch.testing.assert_close(
                torch.tensor(found[str(number)]), expected, rtol=1e-4, atol=1e-5
            )
