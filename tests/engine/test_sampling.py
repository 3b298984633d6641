import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import RequestError
from hone.engine.params import SamplingParams
from hone.engine.sampler import Sampler, draw, penalise, restrict


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("min_tokens", -1),
        ("min_tokens", 300),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("stop", [""]),
        ("stop", 3),
        ("stop_token_ids", ["a"]),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.smoke
def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="ab").stops == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    assert SamplingParams().greedy


def _transformers_filtered(logits, seen, k, p, min_p, penalty, temperature):
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    ids = torch.tensor([seen])
    scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if k:
        scores = TopKLogitsWarper(k)(ids, scores)
    if p < 1:
        scores = TopPLogitsWarper(p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    return scores


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(0, 70),
    p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    penalty=st.floats(0.5, 2.0),
    temperature=st.floats(0.05, 5.0),
    spread=st.floats(0.1, 10.0),
)
def test_filters_equal_those_of_transformers(seed, k, p, min_p, penalty, temperature, spread):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 60, generator=generator) * spread
    seen = [3, 5, 5, 59]
    expected = _transformers_filtered(logits, seen, k, p, min_p, penalty, temperature)
    seen_BV = torch.zeros(1, 60, dtype=torch.bool)
    seen_BV[0, seen] = True
    scores = penalise(logits, seen_BV, torch.tensor([[penalty]])) / temperature
    wide = 60 if k == 0 else min(k, 60)
    found = restrict(
        scores,
        torch.tensor([[wide]]),
        torch.tensor([[p]], dtype=torch.float64),
        torch.tensor([[min_p]]),
    )
    kept = found.isfinite() & expected.isfinite()
    torch.testing.assert_close(found[kept], expected[kept])
    # The sets are the same but for a token whose mass stands on the border of a filter.
    differing = (found.isfinite() != expected.isfinite()).sum()
    assert differing <= 1
    if differing:
        mass = scores.double().softmax(-1)
        border = (found.isfinite() != expected.isfinite()) & (mass > 0)
        assert kept.any()
        assert not border.any() or _on_border(scores, border, wide, p, min_p)


def _on_border(scores, border, k, p, min_p) -> bool:
    values = scores.double().sort(descending=True).values[0][:k]
    mass = values.softmax(-1)
    value = scores[border].double()
    by_mass = ((mass.cumsum(-1) - p).abs() < 1e-5).any()
    by_share = ((value - values[0]).exp() - min_p).abs() < 1e-5
    return bool(by_mass) or bool(by_share)


@pytest.mark.smoke
def test_rows_with_their_own_parameters_do_not_touch_one_another():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 3
    every = [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5, seed=1),
        SamplingParams(temperature=1.3, top_p=0.8, seed=2, repetition_penalty=1.4),
        SamplingParams(temperature=1.0, min_p=0.2, seed=3, min_tokens=2),
    ]

    def sample(rows):
        sampler = Sampler(
            [every[r] for r in rows],
            [[7, 9]] * len(rows),
            [{1, 2}] * len(rows),
            [8] * len(rows),
            50,
        )
        return [sampler(logits[rows] * (1 + 0.1 * step), step).tolist() for step in range(8)]

    together = sample([0, 1, 2, 3])
    for row in range(4):
        assert [step[0] for step in sample([row])] == [step[row] for step in together]


@pytest.mark.smoke
def test_the_end_is_forbidden_before_min_tokens():
    logits = torch.zeros(2, 6)
    logits[:, 4] = 9.0
    sampler = Sampler(
        [SamplingParams(min_tokens=2), SamplingParams()], [[0], [0]], [{4}, {4}], [5, 5], 6
    )
    assert [sampler(logits, step)[0].item() == 4 for step in range(3)] == [False, False, True]
    assert sampler(logits, 0)[1].item() == 4


@pytest.mark.smoke
def test_rows_that_stay_keep_their_random_numbers():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(4))
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in (1, 2, 3)]

    def make():
        return Sampler(params, [[0]] * 3, [()] * 3, [6] * 3, 40)

    whole, cut = make(), make()
    expected = [whole(logits, step) for step in range(6)]
    cut.select_rows(torch.tensor([0, 2]))
    for step in range(6):
        assert cut(logits[[0, 2]], step).equal(expected[step][[0, 2]])


@pytest.mark.smoke
def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = (torch.arange(10_000, dtype=torch.float64)[:, None] + 0.5) / 10_000
    ids = draw(probabilities.log().expand(10_000, 4), uniform)
    assert ids.bincount(minlength=4).tolist() == [5000, 0, 3000, 2000]


@pytest.mark.smoke
def test_a_cold_temperature_is_greedy_and_never_overflows():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    sampler = Sampler([SamplingParams(temperature=1e-30, seed=1)], [[0]], [()], [4], 3)
    assert [sampler(logits, step).item() for step in range(4)] == [1] * 4
