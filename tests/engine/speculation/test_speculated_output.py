"""Guesses decide how fast an output grows, and never what it is."""

import math
from collections import Counter
from itertools import product
from random import Random

import pytest
import torch

from hone.core.errors import ConfigError
from hone.engine.engine import Engine
from hone.engine.invariance import safe_row_counts
from hone.engine.options import EngineOptions
from hone.engine.params import SamplingParams
from hone.engine.request import Request
from hone.engine.sequence import Draft
from hone.engine.speculation import NgramProposer, Speculation
from hone.engine.speculation.draft import DraftModelProposer
from hone.engine.speculation.medusa import MedusaHeads, MedusaProposer
from hone.engine.speculation.tree import choose_tree
from hone.models import CausalLM, ModelConfig

VOCABULARY = 30


def small_model(seed=3, vocabulary=VOCABULARY, spread=0.4, **changes):
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": spread,
    }
    model = CausalLM(ModelConfig(**(sizes | changes)), torch.float32)
    model.initialise(seed)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def counts(model):
    return safe_row_counts(model) or ()


class Told:
    """Knows the outputs, and hides their tokens among wrong ones in trees of all forms."""

    stepwise = False

    def __init__(self, outputs, seed=0, trees=True, vocabulary=VOCABULARY):
        self._outputs, self._random, self._trees = outputs, Random(seed), trees
        self._vocabulary = vocabulary

    def propose(self, sequences, most):
        return [self._draft(*each) for each in zip(sequences, most, strict=True)]

    def _draft(self, sequence, most):
        random, written = self._random, sequence.written
        true = self._outputs[sequence.request.id, sequence.index][written:]
        parents = [number - 1 for number in range(most)]
        if self._trees:
            parents = [random.randint(-1, number - 1) for number in range(most)]
        depths, tokens = [], []
        used = {}
        for parent in parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
            token = random.randrange(self._vocabulary)
            if depths[-1] < len(true) and random.random() < 0.7:
                token = true[depths[-1]]
            while token in used.setdefault(parent, set()):
                token = random.randrange(self._vocabulary)
            used[parent].add(token)
            tokens.append(token)
        return Draft(tokens, parents if self._trees else None)

    def observe(self, sequences, hidden_RE):
        assert hidden_RE.shape[0] == len(sequences)

    def forget(self, sequence):
        pass


def always(proposer):
    """Speculation that never saves its breath."""
    speculation = Speculation(proposer, 8)
    speculation.lengths.choose = lambda keys, limits: list(limits)
    return speculation


def run(model, prompts, params, speculation=None, counts=(), **options):
    chosen = EngineOptions(**({"block_size": 4, "max_running": 8} | options))
    engine = Engine(model, None, (1,), None, counts, chosen, speculation)
    for number, prompt in enumerate(prompts):
        one = params[number % len(params)]
        engine.add(Request(str(number), tuple(prompt), one))
    outputs, reasons = {}, {}
    while engine.busy:
        for delta in engine.step():
            place = delta.request, delta.index
            outputs.setdefault(place, []).extend(delta.tokens)
            reasons[place] = delta.finish_reason
    return (outputs, reasons), engine.stats()


def some_prompts(count=4, seed=0):
    random = Random(seed)
    # Halves that are alike are friendly to look-up.
    return [[random.randrange(2, VOCABULARY) for _ in range(n)] * 2 for n in range(2, 2 + count)]


PARAMS = [
    SamplingParams(max_tokens=24),
    SamplingParams(max_tokens=20, temperature=0.8, seed=5),
    SamplingParams(max_tokens=16, temperature=1.2, top_p=0.9, seed=6, n=2),
    SamplingParams(max_tokens=24, repetition_penalty=1.3, frequency_penalty=0.3),
]


def proposers(model, told):
    heads = MedusaHeads(3, 24)
    heads.initialise(0)
    with torch.no_grad():
        for weight in heads.down.parameters():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    tree = choose_tree([[0.5, 0.3, 0.1]] * 3, 8)
    return {
        "ngram": NgramProposer(1, 3),
        "the model itself": DraftModelProposer(model, VOCABULARY, EngineOptions(block_size=4)),
        "another model": DraftModelProposer(
            small_model(9), VOCABULARY, EngineOptions(block_size=4)
        ),
        "heads": MedusaProposer(model, heads.eval(), tree),
        "told, in chains": Told(told, trees=False),
        "told, in trees": Told(told),
    }


@pytest.mark.parametrize("lean", [False, True])
def test_outputs_are_the_same_with_every_proposer(model, counts, lean):
    prompts = some_prompts()
    options = {"cache_bytes": 40_000, "max_batch_tokens": 40} if lean else {}
    plain, before = run(model, prompts, PARAMS, counts=counts, **options)
    assert before.drafted == 0
    for name, proposer in proposers(model, plain[0]).items():
        found, stats = run(model, prompts, PARAMS, always(proposer), counts, **options)
        assert found == plain, name
        assert stats.drafted > stats.accepted > 0, name
        assert stats.free_blocks == before.free_blocks, name
        if name.startswith("told") and not lean:
            assert stats.steps < 0.75 * before.steps, name


def test_lengths_that_adapt_change_no_output(model, counts):
    prompts = some_prompts(8)
    plain, before = run(model, prompts, PARAMS, counts=counts)
    told = Speculation(Told(plain[0], trees=False), 8)
    found, stats = run(model, prompts, PARAMS, told, counts)
    assert found == plain
    assert stats.steps < before.steps


@pytest.mark.parametrize("proposer", ["draft", "told"])
def test_sampled_tokens_have_the_model_s_distribution(proposer):
    vocabulary, length, temperature = 5, 2, 0.9
    model = small_model(vocabulary=vocabulary, spread=0.25)
    prompt = [2, 3, 4, 2, 3]
    exact = {}
    for tokens in product(range(vocabulary), repeat=length):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0].double() / temperature
        places = range(len(prompt) - 1, len(prompt) + length - 1)
        chosen = logits.log_softmax(-1)[list(places), list(tokens)]
        exact[tokens] = math.exp(chosen.sum().item())
    assert sum(exact.values()) == pytest.approx(1)
    params = [
        SamplingParams(max_tokens=length + 1, temperature=temperature, seed=s, ignore_eos=True)
        for s in range(1200)
    ]
    guesses = DraftModelProposer(model, vocabulary, EngineOptions(block_size=4))
    if proposer == "told":  # guesses that look like what came true, and mostly are
        told = {(str(n), 0): [n % 5, n % 3, n % 2] for n in range(1200)}
        guesses = Told(told, vocabulary=vocabulary)
    speculation = always(guesses)
    speculation.lengths.choose = lambda keys, limits: [min(limit, 3) for limit in limits]
    (outputs, _), stats = run(model, [prompt] * len(params), params, speculation, max_running=64)
    assert stats.accepted > 100
    found = Counter(tuple(tokens[:length]) for tokens in outputs.values())
    assert sum(found.values()) == len(params)
    statistic = sum(
        (found[tokens] - len(params) * share) ** 2 / (len(params) * share)
        for tokens, share in exact.items()
    )
    # Wilson and Hilferty 1931: the cube root of chi-square by its mean is about normal.
    freedom = len(exact) - 1
    spread = 2 / (9 * freedom)
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert deviation < 3.1  # one in a thousand


def test_recurrent_models_are_not_guessed_for():
    from hone.models import read_config

    config = read_config(
        {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
    )
    with pytest.raises(ConfigError, match="no way back"):
        Engine(CausalLM(config), None, speculation=Speculation(NgramProposer(), 4))
