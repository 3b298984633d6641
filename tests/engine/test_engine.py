"""The engine's own promises: nothing it holds is left behind, and no request takes it down."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hone.core.errors import RequestError
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.outcome import lawful
from hone.engine.paged import PagedCache
from hone.engine.params import Grammar, SamplingParams
from hone.engine.request import Request
from hone.engine.sequence import Draft
from hone.engine.speculation import Speculation
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


@pytest.fixture(scope="module")
def mamba():
    made = CausalLM(replace(CONFIG, mixer="mamba", state_space=StateSpace(64, 8, rank=2)))
    made.initialise(seed=2)
    return made.eval()


def engine_of(model, tokenizer=None, speculation=None, blocks=None, **options):
    memory = None
    if blocks is not None:
        memory = (blocks + 1) * PagedCache.block_bytes(model.config, 16, model.dtype)
    options = EngineOptions(cache_bytes=memory, **options)
    return Engine(model, tokenizer, (2,), options=options, speculation=speculation)


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


def test_an_embedding_is_of_the_whole_text_also_where_its_beginning_is_known(model):
    engine = engine_of(model)
    engine.add(Request("e", PROMPT * 2, embed=True))
    engine.add(Request("w", PROMPT * 2, FREE))
    first = run(engine)["e", 0][0].embedding
    assert first == pytest.approx(_embedding_after(engine), abs=1e-5)
    engine.add(Request("w", PROMPT * 2, FREE))
    assert run(engine)["w", 0][0].cached == 32


def _embedding_after(engine):
    engine.add(Request("e", PROMPT * 2, embed=True))
    return run(engine)["e", 0][0].embedding


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


def test_as_many_states_run_as_there_are_slots(mamba):
    engine = engine_of(mamba, max_running=4)
    for number in range(6):
        engine.add(Request(f"{number}", PROMPT[: number + 1], FREE))
    engine.step()
    assert engine.stats().running == 4
    assert len(run(engine)) == 6


class Guessing(Speculation):
    """Guesses the last token again and again, a chain or a fan, whether it pays or not."""

    def __init__(self, tree):
        self.tree = tree
        super().__init__(self, 4)

    stepwise = False

    def propose(self, sequences, limits):
        return [self._draft(one.tokens[-1], n) for one, n in zip(sequences, limits, strict=True)]

    def _draft(self, token, count):
        tokens = [token, token + 1, token, token][:count]
        return Draft(tokens, [-1, -1, 0, 2][:count] if self.tree else None)

    def observe(self, sequences, hidden_RE):
        pass

    def forget(self, sequence):
        pass


def requests(tokenizer):
    """Several outputs, grammars, embeddings and penalties; their blocks are shared."""
    grammar = Grammar("regex", "[a-z ]{3,30}")
    drawn = replace(FREE, n=3, temperature=1.0, seed=4, frequency_penalty=0.5)
    bound = replace(FREE, n=2, temperature=1.0, seed=1, grammar=grammar)
    return [
        Request("drawn", PROMPT, drawn),
        Request("bound", PROMPT[:9], bound),
        Request("embedded", PROMPT * 2, embed=True),
        Request("biased", PROMPT[:17], replace(FREE, logit_bias={7: 1.0}, min_tokens=3)),
    ]


@pytest.mark.parametrize("failing", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", ["plain", "chain", "tree", "state"])
def test_a_step_that_fails_can_be_made_again(model, mamba, tokenizer, failing, kind):
    speculation = Guessing(kind == "tree") if kind in ("chain", "tree") else None
    model, blocks = (mamba, None) if kind == "state" else (model, 9)
    engine = engine_of(model, tokenizer, speculation, blocks, max_batch_tokens=24)
    for request in requests(tokenizer):
        engine.add(request)
    steps = 0

    def fail(*_):
        nonlocal steps
        steps += 1
        if steps == failing:
            raise RuntimeError("no memory")

    hook = model.model.norm.register_forward_hook(fail)
    found, failed = {}, 0
    try:
        while engine.busy:
            try:
                deltas = engine.step()
            except RuntimeError:
                failed += 1
                continue
            for delta in deltas:
                found.setdefault((delta.request, delta.index), []).append(delta)
    finally:
        hook.remove()
    assert failed == 1
    assert not any(held(engine))
    calm = engine_of(model, tokenizer)
    for request in requests(tokenizer):
        calm.add(request)
    for key, deltas in run(calm).items():
        assert tokens_of(found[key]) == tokens_of(deltas)


@pytest.mark.parametrize("guesses", [None, False, True])
@pytest.mark.parametrize("blocks", [5, 60])
@pytest.mark.parametrize("at", [0, 1, 3, 6, 9])
def test_nothing_is_left_of_what_is_taken_back(model, tokenizer, at, blocks, guesses):
    speculation = None if guesses is None else Guessing(guesses)
    engine = engine_of(model, tokenizer, speculation, blocks=blocks, max_batch_tokens=16)
    for request in requests(tokenizer):
        engine.add(request)
    for _ in range(at):
        engine.step()
    engine.abort("drawn", 0)
    engine.abort("bound", 1)
    engine.step()
    engine.abort("drawn")
    engine.abort("biased")
    engine.abort("embedded")
    engine.abort("nobody")
    found = run(engine)
    assert {name for name, _ in found} <= {"bound"}
    assert not any(held(engine))


def test_of_a_tree_under_a_grammar_a_branch_stays_that_it_allows(model, tokenizer):
    letter = {text: tokenizer.backend.token_to_id(text) for text in "abc1"}
    engine = engine_of(model, tokenizer)
    engine.add(Request("r", PROMPT, replace(FREE, grammar=Grammar("regex", "[abc]{2,9}"))))
    (matcher,) = engine._matchers.values()
    a, b, c, digit = (letter[text] for text in "abc1")
    tree = Draft([digit, a, b, digit, c, a], [-1, -1, 0, 1, 1, 4])
    assert lawful(tree, matcher) == Draft([a, c, a])
    assert lawful(Draft([a, b, digit, c]), matcher) == Draft([a, b])
    assert lawful(Draft([]), matcher) == Draft([])
    assert lawful(tree, matcher) == Draft([a, c, a])  # the matcher stands where it stood


def test_a_pooling_that_needs_whole_texts_is_refused_by_request(tokenizer):
    made = CausalLM(replace(CONFIG, embedding_pooling="eos"))
    engine = engine_of(made, tokenizer)
    with pytest.raises(RequestError, match="sentence-embedding"):
        engine.add(Request("e", PROMPT, embed=True))
    assert not any(held(engine))


@pytest.mark.parametrize("kind", ["plain", "chain", "tree"])
def test_what_is_written_counts_for_penalties(model, kind):
    engine = engine_of(model, None, None if kind == "plain" else Guessing(kind == "tree"))
    params = replace(FREE, frequency_penalty=1.5, logit_bias={7: 50.0, 8: 49.0, 9: -100.0})
    engine.add(Request("r", PROMPT, params))
    found = tokens_of(run(engine)["r", 0])
    assert set(found) == {7, 8}  # the likelier one gives way to the other, and again
    assert abs(found.count(7) - found.count(8)) <= 4
    assert sum(a != b for a, b in pairwise(found)) >= 3
