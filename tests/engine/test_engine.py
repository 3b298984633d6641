"""The engine's own promises: nothing it holds is left behind, and no request takes it down."""

from dataclasses import replace

import pytest
import torch

from hone.core.errors import RequestError
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache
from hone.engine.params import Grammar, SamplingParams
from hone.engine.request import Request
from hone.models import CausalLM, ModelConfig, StateSpace

CONFIG = ModelConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    embedding_pooling="mean",
    eos_token_id=2,
    model_type="hone",
)
PROMPT = tuple(range(30, 50))
FREE = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    made = CausalLM(CONFIG)
    made.initialise(seed=2)
    return made.eval()


def engine_of(model, tokenizer=None, blocks=None, **options):
    memory = None
    if blocks is not None:
        memory = (blocks + 1) * PagedCache.block_bytes(model.config, 16, model.dtype)
    options = EngineOptions(cache_bytes=memory, **options)
    return Engine(model, tokenizer, (2,), options=options)


def run(engine, most=500):
    """The deltas of everything, by request and output."""
    found = {}
    for _ in range(most):
        if not engine.busy:
            return found
        for delta in engine.step():
            found.setdefault((delta.request, delta.index), []).append(delta)
    raise AssertionError("it goes on for ever")


def tokens_of(deltas):
    return [token for delta in deltas for token in delta.tokens]


def held(engine):
    """Everything that is kept of requests; nothing, when none is there."""
    sampler, scheduler = engine._sampler, engine._scheduler
    return (
        engine._pool.count - engine._pool.free,
        len(sampler._table) - len(sampler._free),
        len(sampler._histories) + len(sampler._biases) + len(sampler._ends),
        len(engine._matchers) + len(engine._poolers) + len(engine._requests),
        len(scheduler.running) + len(scheduler.waiting),
        sum(scheduler.waiting._live.values()) + len(scheduler.waiting._served),
    )


def test_an_embedding_is_the_same_when_its_text_lost_its_blocks(model):
    alone = engine_of(model)
    alone.add(Request("e", PROMPT * 3, embed=True))
    (expected,) = run(alone)["e", 0]
    engine = engine_of(model, blocks=5, max_batch_tokens=16, prefix_sharing=False)
    engine.add(Request("first", PROMPT + PROMPT[:10], replace(FREE, max_tokens=30)))
    engine.step()
    engine.add(Request("e", PROMPT * 3, embed=True))
    found = run(engine)
    assert engine.stats().preemptions
    torch.testing.assert_close(
        torch.tensor(found["e", 0][0].embedding), torch.tensor(expected.embedding)
    )


def test_a_text_that_the_cache_cannot_hold_is_refused_and_no_other(model):
    engine = engine_of(model, blocks=2)
    engine.add(Request("fits", (5,) * 32, embed=True))
    assert run(engine)["fits", 0][0].embedding is not None
    with pytest.raises(RequestError, match="33 positions of the cache, which has 32"):
        engine.add(Request("too long", (5,) * 33, embed=True))


@pytest.mark.parametrize("token", [10**9, -1, -(10**9)])
def test_a_stop_token_that_there_is_not_stops_nothing(model, tokenizer, token):
    engine = engine_of(model, tokenizer)
    grammar = Grammar("regex", "[a-z]{3,5}")
    for number, each in enumerate([None, grammar]):
        params = replace(
            FREE, stop_token_ids=(token,), min_tokens=2, ignore_eos=False, grammar=each
        )
        engine.add(Request(f"{number}", PROMPT, params))
        engine.add(Request(f"plain {number}", PROMPT, replace(params, stop_token_ids=())))
    found = run(engine)
    for number in range(2):
        assert tokens_of(found[f"{number}", 0]) == tokens_of(found[f"plain {number}", 0])
    assert not any(held(engine))


def test_as_many_states_run_as_there_are_slots(tokenizer):
    config = replace(CONFIG, mixer="mamba", state_space=StateSpace(64, 8, rank=2))
    made = CausalLM(config)
    made.initialise(seed=2)
    engine = engine_of(made.eval(), max_running=4)
    for number in range(6):
        engine.add(Request(f"{number}", PROMPT[: number + 1], FREE))
    engine.step()
    assert engine.stats().running == 4
    assert len(run(engine)) == 6
