"""What a request gets depends on nothing but the request: not on the company, the order, the cut of
its prompt, what was cached, who was preempted, where blocks lie, or what was guessed ahead.
"""

from dataclasses import dataclass, replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hone.engine.collect import Collector
from hone.engine.engine import Engine
from hone.engine.invariance import safe_row_counts
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache
from hone.engine.params import SamplingParams
from hone.engine.request import Delta, Request
from hone.engine.sequence import Draft
from hone.engine.sources import AnswerTokens
from hone.engine.speculation import Speculation
from hone.models import CausalLM, Experts, ModelConfig, Rotary, Seq2SeqLM, StateSpace
from hone.models.positions import Alibi, Buckets, DynamicScaling, LongScaling

VOCABULARY, LONGEST = 96, 24
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.25,
    "eos_token_id": 2,
    "model_type": "hone",
}
_LONG = LongScaling((1.0,) * 6, (2.0,) * 6, original_max_position_embeddings=20)
MODELS = {
    "decoder": {},
    "grouped heads": {"num_key_value_heads": 2},
    "window": {"num_key_value_heads": 1, "sliding_window": 7, "sliding_layers": (1,)},
    "distances": {"positions": Alibi()},
    "lengths": {"positions": Rotary(scaling=DynamicScaling(2.0)), "max_position_embeddings": 32},
    "turning point": {"positions": Rotary(scaling=_LONG)},
    "experts": {"experts": Experts(4, 2, 32, shared_size=16)},
    "mamba": {"mixer": "mamba", "state_space": StateSpace(96, 8, rank=3)},
    "mamba2": {"mixer": "mamba2", "state_space": StateSpace(96, 8, heads=16)},
    "encoder and decoder": {"positions": Buckets(), "encoder": True, "decoder_start_token_id": 0},
}


@cache
def model_of(name):
    values = {**_SHAPE, **MODELS[name]}
    encoder = values.pop("encoder", None)
    if encoder:
        shape = {k: v for k, v in values.items() if k != "decoder_start_token_id"}
        values["encoder"] = ModelConfig(**shape, causal=False)
    config = ModelConfig(**values)
    model = (Seq2SeqLM if encoder else CausalLM)(config)
    model.initialise(seed=4)
    counts = safe_row_counts(model.eval())
    return model, counts, AnswerTokens(0, last=2) if encoder else None


def engine_of(name, speculation=None, **options):
    model, counts, answer = model_of(name)
    if counts is None:
        pytest.skip("no count of rows makes this processor's products independent of their rows")
    return Engine(model, None, (2,), answer, counts, EngineOptions(**options), speculation)


def outputs(engine, arrivals, cancelled=()):
    """The tokens and log-probabilities of every output that was not taken back."""
    found, step = {}, 0
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    while arrivals or engine.busy:
        while arrivals and arrivals[0][0] <= step:
            engine.add(arrivals.pop(0)[1])
        for at, name in cancelled:
            if at == step:
                engine.abort(name)
        for delta in engine.step():
            assert delta.finish_reason != "error", delta.error
            tokens, logprobs = found.setdefault((delta.request, delta.index), ([], []))
            tokens.extend(delta.tokens)
            logprobs.extend(delta.logprobs)
        step += 1
        assert step < 3000
    stats = engine.stats()
    assert stats.free_blocks == stats.blocks
    taken_back = {name for _, name in cancelled}
    return {key: value for key, value in found.items() if key[0] not in taken_back}


_known = {}


def alone(name, request):
    """What ``request`` gets from an engine that has nothing else to do and takes no short cut."""
    key = (name, request.prompt, repr(request.params))
    if key not in _known:
        engine = engine_of(name, prefix_sharing=False, block_size=16)
        found = outputs(engine, [(0, replace(request, id="", priority=0, owner=""))])
        _known[key] = {index: value for (_, index), value in found.items()}
    return _known[key]


@dataclass
class Knowing:
    """Guesses what is known to come, with mistakes: chains and trees of all shapes."""

    name: str
    pattern: list[int]
    trees: bool
    stepwise = False

    def propose(self, sequences, most):
        return [self._draft(one, count) for one, count in zip(sequences, most, strict=True)]

    def _draft(self, sequence, count):
        truth = alone(self.name, sequence.request)[sequence.index][0][sequence.written :]
        picks = [self.pattern[(sequence.written + i) % len(self.pattern)] for i in range(count)]
        right = [t if pick else (t + 1) % VOCABULARY for t, pick in zip(truth, picks, strict=False)]
        if not self.trees:
            return Draft(right)
        tokens, parents, trunk = [], [], -1
        for token in right:
            for wrong in range(picks[len(parents) % len(picks)] % 3):
                tokens.append((token + 3 + wrong) % VOCABULARY)
                parents.append(trunk)
            tokens.append(token)
            parents.append(trunk)
            trunk = len(tokens) - 1
        return Draft(tokens[:count], parents[:count])

    def observe(self, sequences, hidden_RE):
        assert len(sequences) == len(hidden_RE)

    def forget(self, sequence):
        pass


class Always(Speculation):
    """Asks for as many guesses as may be made."""

    def propose(self, sequences, limits):
        return self.proposer.propose(sequences, limits)


_STEMS = [[7, 8, 9, 10, 11, 12] * 6, [20, 21, 22] * 12, [5] * 40]
_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, LONGEST),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    logprobs=st.just(1),
    ignore_eos=st.booleans(),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    n=st.sampled_from([1, 1, 3]),
)
_requests = st.lists(
    st.tuples(
        st.integers(0, 10),  # the step at which it comes
        st.sampled_from(_STEMS),
        st.integers(1, 34),  # tokens of the stem
        st.integers(30, 33),  # the last token
        _params,
        st.integers(0, 1),  # priority
        st.integers(0, 9),  # taken back after so many steps, below 3
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=_requests,
    blocks=st.integers(6, 14),
    tokens=st.sampled_from([16, 23, 64, 600]),
    running=st.integers(1, 8),
    sharing=st.booleans(),
    guesses=st.sampled_from(["none", "chain", "tree"]),
    pattern=st.lists(st.integers(0, 2), min_size=3, max_size=7),
)
def test_an_output_depends_on_its_request_alone(
    name, requests, blocks, tokens, running, sharing, guesses, pattern
):
    model, _, _ = model_of(name)
    speculation = None
    if guesses != "none" and model.config.mixer == "attention":
        speculation = Always(Knowing(name, pattern, guesses == "tree"), 6)
    engine = engine_of(
        name,
        speculation,
        max_running=running,
        max_batch_tokens=tokens,
        block_size=16,
        prefix_sharing=sharing,
        cache_bytes=(blocks + 1) * engine_block_bytes(model),
        speculation_length=6,
    )
    room = min(34, model.config.max_position_embeddings - LONGEST)
    arrivals, cancelled, every = [], [], []
    for number, (at, stem, length, last, params, priority, patience) in enumerate(requests):
        prompt = (*stem[: min(length, room) - 1], last)
        request = Request(f"r{number}", prompt, params, priority, f"o{number % 2}")
        arrivals.append((at, request))
        every.append(request)
        if patience < 3:
            cancelled.append((at + patience, request.id))
    found = outputs(engine, arrivals, cancelled)
    gone = {request_id for _, request_id in cancelled}
    for request in every:
        if request.id not in gone:
            for index, (ids, logprobs) in alone(name, request).items():
                assert found[request.id, index][0] == ids
                assert found[request.id, index][1] == logprobs  # to the last bit


def engine_block_bytes(model):
    return max(1, PagedCache.block_bytes(model.config, 16, model.dtype))


def test_guesses_save_steps():
    request = Request("r", (7, 8, 9), SamplingParams(max_tokens=20, ignore_eos=True, logprobs=1))
    plain, guessing = engine_of("decoder"), None
    outputs(plain, [(0, request)])
    for trees in (False, True):
        # In a tree, right guesses stand behind wrong ones, and must be moved when they are taken.
        guessing = engine_of("decoder", Always(Knowing("decoder", [1], trees), 6))
        found = outputs(guessing, [(0, request)])
        assert found["r", 0] == alone("decoder", request)[0]
        assert guessing.stats().steps < plain.stats().steps / 2
        assert guessing.stats().accepted > 10


@pytest.mark.parametrize(("length", "pressed"), [(12, True), (33, False)])
def test_pressure_preempts_and_prefixes_are_found(length, pressed):
    """The conditions of the test above do arise."""
    params = SamplingParams(max_tokens=LONGEST, ignore_eos=True, logprobs=1)
    model, _, _ = model_of("decoder")
    memory = 7 * engine_block_bytes(model)
    engine = engine_of("decoder", block_size=16, cache_bytes=memory, max_batch_tokens=16)
    requests = [Request(f"{i}", (*_STEMS[0][:length], i), params) for i in range(4)]
    found = outputs(engine, [(i, request) for i, request in enumerate(requests)])
    stats = engine.stats()
    assert (stats.preemptions > 0) == pressed
    assert (stats.prefix_hits >= 32) != pressed
    for request in requests:
        assert found[request.id, 0] == alone("decoder", request)[0]


def test_a_collector_gives_the_text_of_what_came(tokenizer):
    params = SamplingParams(max_tokens=9, stop=["7"])
    collector = Collector(tokenizer, params, [1])
    ids = tokenizer.encode("a 6 7 8")
    shown = "".join(collector.take(Delta("r", 0, [token])).text for token in ids)
    assert shown == collector.text() == "a 6 "
    assert collector.done
    assert collector.finish_reason() == "stop"
