import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels.attention import AttentionRule, attention

SIZE = 8


def by_the_formula(q, k, v, rule, slopes=None, lengths=None):
    """Softmax attention written out, in float64, one query at a time."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (
        x.double() for x in (q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))
    )
    rows, heads, queries, size = q.shape
    keys = k.shape[2]
    out = torch.zeros_like(q)
    for row in range(rows):
        for head in range(heads):
            for query in range(queries):
                place = keys - queries + query
                scores = []
                for key in range(keys):
                    score = (q[row, head, query] @ k[row, head, key]).item()
                    score *= size**-0.5 if rule.scale is None else rule.scale
                    if rule.softcap is not None:
                        score = rule.softcap * torch.tanh(torch.tensor(score / rule.softcap)).item()
                    if slopes is not None:
                        score -= slopes[head] * abs(place - key)
                    hidden = rule.causal and key > place
                    hidden |= rule.window is not None and abs(place - key) >= rule.window
                    hidden |= lengths is not None and key >= lengths[row]
                    scores.append(-float("inf") if hidden else score)
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                out[row, head, query] = weights @ v[row, head]
    return out


def slope_bias(slopes):
    def bias(queries, keys, device):
        place = torch.arange(keys - queries, keys)[:, None]
        return -torch.tensor(slopes)[:, None, None] * (place - torch.arange(keys)).abs()

    return bias


RULES = st.builds(
    dict,
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5, 30]),
    scale=st.sampled_from([None, 0.7]),
    softcap=st.sampled_from([None, 1.5]),
)


@pytest.mark.smoke
@settings(max_examples=60)
@given(
    rule=RULES,
    sizes=st.sampled_from([(1, 1), (5, 5), (1, 7), (3, 9)]),
    heads=st.sampled_from([(4, 1), (4, 2), (3, 3)]),
    biased=st.booleans(),
    padded=st.booleans(),
)
def test_every_mask_and_score_by_the_formula(rule, sizes, heads, biased, padded):
    rule = AttentionRule(*heads, **rule)
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, heads[0], sizes[0], SIZE, generator=generator)
    k, v = torch.randn(2, 2, heads[1], sizes[1], SIZE, generator=generator)
    slopes = [0.5 / (head + 1) for head in range(heads[0])] if biased else None
    lengths = [sizes[1], max(1, sizes[1] - 2)] if padded else None
    found = attention(
        q,
        k,
        v,
        rule,
        slope_bias(slopes) if biased else None,
        torch.tensor(lengths) if padded else None,
    )
    expected = by_the_formula(q, k, v, rule, slopes, lengths)
    # What padding sees may be nothing at all: a query that has no key means nothing.
    seen = expected.isfinite()
    torch.testing.assert_close(found.double()[seen], expected[seen], atol=1e-5, rtol=1e-5)


def test_a_learnt_bias_gets_its_gradient():
    torch.manual_seed(1)
    rule = AttentionRule(2, 2, causal=False)
    q, k, v = torch.randn(3, 1, 2, 4, SIZE, dtype=torch.float64)
    table = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    attention(q, k, v, rule, lambda *_: table).square().sum().backward()
    step = torch.zeros_like(table)
    step[1, 2, 3] = 1e-3

    def value(bias):
        return attention(q, k, v, rule, lambda *_: bias).square().sum().item()

    slope = (value(table.detach() + step) - value(table.detach() - step)) / 2e-3
    assert table.grad[1, 2, 3].item() == pytest.approx(slope, rel=1e-4)
