import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_drawing import assert_chi_square

from hone.core.errors import RequestError
from hone.engine.drawing import draw
from hone.engine.params import SamplingParams
from hone.engine.sampler import Place, Sampler, penalise


def _sampler(params, vocabulary, prompt=(0,), ends=(), budget=10**6, **options):
    sampler = Sampler(vocabulary)
    return sampler, sampler.open(params, prompt, ends, budget, **options)


def _kept(params, logits, prompt, output, ends=()) -> torch.Tensor:
    """The probabilities that a step draws by, read off many draws' worth of weights."""
    sampler, key = _sampler(params, logits.shape[1], prompt, ends)
    sampler.commit(key, output)
    found = {}

    def spy(weights, uniform):
        found["weights"] = weights.double() / weights.double().sum()
        return draw(weights, uniform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hone.engine.sampler.draw", spy)
        sampler(logits.clone(), [Place(key, len(output))])
    return found["weights"]


def _by_transformers(params, logits, prompt, output, ends=()) -> torch.Tensor:
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    p, steps = params, LogitsProcessorList()
    if p.logit_bias:
        steps.append(
            SequenceBiasLogitsProcessor([[[t], float(b)] for t, b in p.logit_bias.items()])
        )
    if p.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.min_tokens and ends:
        steps.append(MinNewTokensLengthLogitsProcessor(len(prompt), p.min_tokens, list(ends)))
    steps.append(TemperatureLogitsWarper(p.temperature))
    if p.top_k > 0:
        steps.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1:
        steps.append(TopPLogitsWarper(p.top_p))
    if p.min_p > 0:
        steps.append(MinPLogitsWarper(p.min_p))
    return steps(torch.tensor([[*prompt, *output]]), logits.clone()).double().softmax(-1)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(0, 70),
    p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    penalty=st.floats(0.5, 2.0),
    temperature=st.floats(0.05, 5.0),
    spread=st.floats(0.1, 10.0),
    bias=st.dictionaries(st.integers(0, 59), st.floats(-100, 100), max_size=4),
    min_tokens=st.integers(0, 4),
)
def test_a_step_draws_by_the_probabilities_of_transformers(
    seed, k, p, min_p, penalty, temperature, spread, bias, min_tokens
):
    # What is left must not be the only token, which is greedy.
    k = k + (k == 1)
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(seed)) * spread
    params = SamplingParams(
        temperature=temperature,
        top_k=k,
        top_p=p,
        min_p=min_p,
        repetition_penalty=penalty,
        logit_bias=bias,
        min_tokens=min_tokens,
        seed=seed,
    )
    case = (params, logits, [3, 5, 5, 59], [7, 7], (2, 11))
    found, expected = _kept(*case), _by_transformers(*case)
    # The sets are the same but for tokens whose mass stands on the border of a filter: one, or
    # several that together have next to none.
    differing = (found > 0) != (expected > 1e-40)
    if differing.any():
        assert differing.sum() <= 1 or (found + expected)[differing].sum() < 1e-5
        assert _on_border(*case)
    else:
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-9)


def _on_border(params, logits, *rest) -> bool:
    plain = _by_transformers(replace(params, top_p=1.0, min_p=0.0), logits, *rest)
    mass = plain.sort(descending=True).values
    by_mass = ((mass.cumsum(-1) - params.top_p).abs() < 1e-5).any()
    by_share = (mass / mass.amax() - params.min_p).abs().min() < 1e-5
    # Tokens too unlikely for float32.
    return bool(by_mass) or bool(by_share) or bool((mass[mass > 0] < 1e-37).any())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    prompt=st.lists(st.integers(0, 29), max_size=80),
    output=st.lists(st.integers(0, 29), max_size=100),
    drafted=st.lists(st.integers(0, 29), max_size=5),
    repetition=st.sampled_from([1.0, 0.7, 1.3]),
    presence=st.sampled_from([0.0, -0.4, 1.5]),
    frequency=st.sampled_from([0.0, 0.3, -1.1]),
)
def test_penalties_count_prompt_output_and_drafts(
    seed, prompt, output, drafted, repetition, presence, frequency
):
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        temperature=1.0,
        seed=1,
    )
    # As the formulas stand: repetition looks at everything, the two others at the output.
    written = [*output, *drafted]
    expected = logits.clone()
    for token in range(30):
        if token in [*prompt, *written]:
            score = expected[0, token]
            expected[0, token] = score / repetition if score > 0 else score * repetition
        expected[0, token] -= frequency * written.count(token) + presence * (token in written)
    sampler, key = _sampler(params, 30, prompt)
    for token in output:
        sampler.commit(key, [token])
    plain, other = _sampler(SamplingParams(temperature=1.0, seed=1), 30)
    for index in range(5):
        found = sampler(logits.clone(), [Place(key, index, tuple(drafted))]).ids
        assert found == plain(expected.clone(), [Place(other, index)]).ids
    greedy, key = _sampler(replace(params, temperature=0.0), 30, prompt)
    greedy.commit(key, output)
    found = greedy(logits.clone(), [Place(key, 0, tuple(drafted))]).ids
    assert found == [expected.argmax().item()]


@pytest.mark.smoke
def test_penalties_change_seen_scores_as_their_papers_say():
    scores = torch.tensor([4.0, -4.0, 4.0, -4.0])
    counts = torch.tensor([0.0, 0.0, 2.0, 1.0])
    found = penalise(scores, counts, torch.tensor(2.0), torch.tensor(0.5), torch.tensor(0.25))
    assert found.tolist() == [2.0, -8.0, 2.0 - 0.5 - 0.5, -8.0 - 0.25 - 0.5]


def _mixed(vocabulary: int) -> list[SamplingParams]:
    return [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5, seed=1),
        SamplingParams(temperature=1.3, top_p=0.8, seed=2, repetition_penalty=1.4),
        SamplingParams(temperature=1.0, min_p=0.02, seed=3, min_tokens=2, logprobs=3),
        SamplingParams(temperature=1.5, seed=4, frequency_penalty=0.5, logit_bias={3: 2.0}),
        SamplingParams(temperature=0.9, seed=5),
        SamplingParams(temperature=0.9, seed=6, top_k=vocabulary // 2, top_p=0.999),
        SamplingParams(presence_penalty=1.0, logprobs=0),
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([50, 333, 4096]),
    order=st.permutations(range(8)),
    count=st.integers(1, 8),
    spans=st.lists(st.integers(1, 4), min_size=8, max_size=8),
)
def test_a_place_gets_its_token_in_any_batch_order_and_speculation(
    seed, vocabulary, order, count, spans
):
    every, steps = _mixed(vocabulary), 6
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(every), steps, vocabulary, generator=generator) * 3
    allowed = torch.full((len(every), steps, (vocabulary + 31) // 32), -1, dtype=torch.int32)
    allowed[[1, 5]] = torch.randint(
        -(2**31), 2**31, allowed[:2].shape, generator=generator, dtype=torch.int32
    )

    def alone(row: int) -> list:
        sampler, key = _sampler(every[row], vocabulary, [7, 9], {1, 2})
        taken = []
        for step in range(steps):
            at = logits[row : row + 1, step].clone(), [Place(key, step)]
            found = sampler(*at, allowed[row : row + 1, step])
            sampler.commit(key, found.ids)
            taken.append((found.ids[0], found.logprobs[0]))
        return taken

    expected = {row: alone(row) for row in order[:count]}
    sampler = Sampler(vocabulary)
    keys = {row: sampler.open(every[row], [7, 9], {1, 2}, 100) for row in order[:count]}
    done = dict.fromkeys(keys, 0)
    while left := [row for row in keys if done[row] < steps]:
        # Each row looks at several places at once, drafting what it will get.
        places, which = [], []
        for row in left:
            chosen = [token for token, _ in expected[row]]
            for step in range(done[row], min(steps, done[row] + spans[row])):
                places.append(Place(keys[row], step, tuple(chosen[done[row] : step])))
                which.append((row, step))
        rows, at = zip(*which, strict=True)
        found = sampler(logits[rows, at], places, allowed[rows, at])
        assert list(zip(found.ids, found.logprobs, strict=True)) == [
            expected[row][step] for row, step in which
        ]
        for row in left:
            new = [token for (r, _), token in zip(which, found.ids, strict=True) if r == row]
            sampler.commit(keys[row], new)
            done[row] += len(new)


def test_sampled_tokens_follow_the_distribution():
    vocabulary, rows = 40, 6000
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(8)) * 1.5
    for params in (
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.2, top_k=12),
        SamplingParams(temperature=1.0, top_p=0.7, min_p=0.01),
    ):
        expected = _by_transformers(params, logits, [0], []).squeeze(0)
        for by_seed in (True, False):
            sampler = Sampler(vocabulary)
            seeds = range(rows) if by_seed else [11] * rows
            keys = [sampler.open(replace(params, seed=seed), [0], (), 9) for seed in seeds]
            places = [Place(key, 0 if by_seed else i) for i, key in enumerate(keys)]
            ids = torch.tensor(sampler(logits.repeat(rows, 1), places).ids)
            counts = ids.bincount(minlength=vocabulary).double()
            assert counts[expected == 0].sum() == 0
            kept = expected * rows >= 5
            share = expected[kept] / expected[kept].sum() * counts[kept].sum()
            found = ((counts[kept] - share) ** 2 / share).sum().item()
            assert_chi_square(found, int(kept.sum()) - 1)


@pytest.mark.smoke
def test_outputs_of_one_seed_differ_and_a_drawn_seed_is_new():
    logits = torch.zeros(1, 5000)
    params = SamplingParams(temperature=1.0, seed=7)
    sampler = Sampler(5000)
    keys = [sampler.open(params, [0], (), 9, stream=i) for i in (0, 1, 2, 0)]
    keys += [sampler.open(replace(params, seed=None), [0], (), 9) for _ in range(3)]
    ids = sampler(logits.repeat(7, 1), [Place(key, 0) for key in keys]).ids
    assert ids[0] == ids[3]
    assert len(set(ids)) == 6


@pytest.mark.smoke
def test_the_end_is_forbidden_before_min_tokens():
    logits = torch.zeros(2, 6)
    logits[:, 4] = 9.0
    sampler = Sampler(6)
    params = SamplingParams(min_tokens=2)
    keys = [sampler.open(p, [0], {4, 77}, 5) for p in (params, SamplingParams())]
    steps = [sampler(logits.clone(), [Place(key, i) for key in keys]).ids for i in range(3)]
    assert [ids[0] == 4 for ids in steps] == [False, False, True]
    assert [ids[1] == 4 for ids in steps] == [True] * 3


@pytest.mark.smoke
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_encoder_decoder_answers_with_its_forced_tokens(temperature):
    params = SamplingParams(temperature=temperature, seed=0)
    sampler, key = _sampler(params, 9, budget=3, first=5, last=6)
    logits = torch.zeros(3, 9)
    logits[:, 2] = 50.0
    assert sampler(logits, [Place(key, i) for i in range(3)]).ids == [5, 2, 6]


@pytest.mark.smoke
@pytest.mark.parametrize("vocabulary", [50, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_choice_are_told_apart(vocabulary, temperature):
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=1, logprobs=1)
    sampler = Sampler(vocabulary)
    keys = [sampler.open(params, [0], (), 9) for _ in range(6)]
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0))
    places = [Place(key, 0) for key in keys]
    whole = sampler(logits.clone(), places)
    logits[1, 17] = math.nan
    logits[2] = -math.inf
    logits[3, 3] = math.inf
    allowed = torch.full((6, (vocabulary + 31) // 32), -1, dtype=torch.int32)
    allowed[4] = 0
    found = sampler(logits, places, allowed)
    assert found.ids[1:5] == [-1] * 4
    assert found.logprobs[1:5] == [None] * 4
    assert [found.ids[0], found.ids[5]] == [whole.ids[0], whole.ids[5]]
    assert found.logprobs[5] == whole.logprobs[5]


@pytest.mark.smoke
@pytest.mark.parametrize("vocabulary", [50, 64, 1000])
def test_only_tokens_of_the_mask_are_chosen(vocabulary):
    words = (vocabulary + 31) // 32
    generator = torch.Generator().manual_seed(2)
    allowed = torch.zeros(60, words, dtype=torch.int32)
    sets = [set(torch.randperm(vocabulary, generator=generator)[:3].tolist()) for _ in range(60)]
    for row, tokens in enumerate(sets):
        for token in tokens:
            bit = 1 << token % 32
            allowed[row, token // 32] |= bit - 2**32 if bit == 2**31 else bit
    sampler = Sampler(vocabulary)
    keys = [
        sampler.open(SamplingParams(temperature=float(i % 2), seed=i), [0], (), 9)
        for i in range(60)
    ]
    logits = torch.randn(60, vocabulary, generator=generator)
    places = [Place(key, 0) for key in keys]
    ids = sampler(logits.clone(), places, allowed).ids
    assert all(token in tokens for token, tokens in zip(ids, sets, strict=True))
    # A grammar may know fewer tokens than the model.
    short = sampler(logits.clone(), places, allowed[:, :1].bitwise_or(1)).ids
    assert max(short) < 32


@pytest.mark.smoke
def test_logprobs_are_those_of_the_models_own_scores():
    vocabulary = 700
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(5)).bfloat16()
    params = SamplingParams(temperature=0.5, top_k=3, seed=1, logit_bias={9: 100.0}, logprobs=4)
    sampler = Sampler(vocabulary)
    keys = [sampler.open(p, [0], (), 9) for p in (SamplingParams(), params)]
    found = sampler(logits.clone(), [Place(key, 0) for key in keys])
    expected = logits[1].float().log_softmax(-1)
    assert found.logprobs[0] is None
    told = found.logprobs[1]
    assert (told.token, found.ids[1]) == (9, 9)
    assert told.logprob == expected[9].item()
    best = expected.topk(4)
    assert [value for _, value in told.top] == best.values.tolist()
    assert [expected[token].item() for token, _ in told.top] == best.values.tolist()


@pytest.mark.smoke
def test_a_cold_temperature_is_greedy_and_never_overflows():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    sampler, key = _sampler(SamplingParams(temperature=1e-30, seed=1), 3)
    assert [sampler(logits.clone(), [Place(key, step)]).ids for step in range(4)] == [[1]] * 4
    sampler, key = _sampler(SamplingParams(temperature=2e-5, seed=1), 3)
    assert [sampler(logits.clone(), [Place(key, step)]).ids for step in range(4)] == [[1]] * 4


@pytest.mark.smoke
def test_a_bias_of_a_token_that_there_is_not_is_refused():
    with pytest.raises(RequestError, match="token 40; those of the model are 0 to 39"):
        _sampler(SamplingParams(logit_bias={3: 1.0, 40: 1.0}), 40)


@pytest.mark.smoke
def test_a_closed_key_leaves_nothing_behind():
    sampler = Sampler(40)
    heavy = SamplingParams(
        temperature=1.0, seed=3, repetition_penalty=5.0, logit_bias={1: 50.0}, min_tokens=3
    )
    opened = [sampler.open(heavy, [0], {2}, 9) for _ in range(20)]
    assert len(set(opened)) == 20
    for key in opened:
        sampler.close(key)
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(6))
    for _ in range(20):
        key = sampler.open(SamplingParams(), [0], {2}, 9)
        assert sampler(logits.clone(), [Place(key, 0)]).ids == [logits.argmax().item()]
