import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import packed
from hone.kernels.attention import AttentionRule
from hone.kernels.packed import (
    PackedLayout,
    packed_attention,
    packed_attention_reference,
    packed_cross_attention,
)
from hone.kernels.rotary import rotary_table

SIZE = 8
RULE = AttentionRule(2, 1)


def pack(lengths, heads, kv_heads, dtype=torch.float32):
    torch.manual_seed(sum(lengths) + heads)
    tokens = sum(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    rotary = rotary_table(positions, 1.0 / 100 ** (torch.arange(0, SIZE, 2) / SIZE), dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * SIZE).to(dtype)
    return qkv, rotary, PackedLayout(bounds)


def both(qkv, rotary, layout, heads, kv_heads, bias=None, **choices):
    rule = AttentionRule(heads, kv_heads, **choices)
    for function in (packed_attention, packed_attention_reference):
        leaf = qkv.detach().requires_grad_()
        out = function(leaf, rotary, layout, rule, bias)
        pull = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        yield out, torch.autograd.grad(out, leaf, pull)[0]


@pytest.mark.smoke
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)]),
)
def test_equal_to_every_sequence_alone_with_gradients(lengths, heads):
    fast, slow = both(*pack(lengths, *heads), *heads)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("uncut", "block", "kept"), [(4, 4, 1024), (4, 7, 1024), (4, 4, 8)])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_long_sequences_in_blocks_with_probabilities_kept_or_recomputed(
    monkeypatch, uncut, block, kept, heads
):
    monkeypatch.setattr(packed, "_UNCUT", uncut)
    monkeypatch.setattr(packed, "_BLOCK", block)
    monkeypatch.setattr(packed, "_LONGEST_KEPT", kept)
    fast, slow = both(*pack([21, 3, 20, 1, 9, 8], *heads), *heads)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_bfloat16_within_its_precision():
    fast, slow = both(*pack([30, 5, 28], 4, 2, torch.bfloat16), 4, 2)
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs.float()).abs().max() < 3e-2 * theirs.float().abs().max()


def test_groups_hold_sequences_of_similar_length_and_every_token_once():
    layout = PackedLayout(torch.tensor([0, 100, 130, 225, 256, 257]))
    assert [(g.length, g.sequences) for g in layout.groups] == [(100, 2), (31, 2), (1, 1)]
    assert layout.slots == 200 + 62 + 1


def test_empty_sequences_are_no_sequences():
    qkv, rotary, _ = pack([3, 4], 2, 1)
    gaps = PackedLayout(torch.tensor([0, 0, 3, 3, 7, 7]))
    plain = PackedLayout(torch.tensor([0, 3, 7]))
    assert torch.equal(
        packed_attention(qkv, rotary, gaps, RULE), packed_attention(qkv, rotary, plain, RULE)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_sequence_spoils_no_other(value):
    qkv, rotary, layout = pack([5, 6, 5], 2, 1)
    healthy = packed_attention(qkv.clone().requires_grad_(), rotary, layout, RULE)
    broken = qkv.clone()
    broken[7] = value
    leaf = broken.requires_grad_()
    out = packed_attention(leaf, rotary, layout, RULE)
    out.sum().backward()
    inside = torch.arange(16)
    inside = (inside >= 5) & (inside < 11)
    assert torch.equal(out[~inside], healthy[~inside])
    assert leaf.grad[~inside].isfinite().all()
    assert out[7:11].isnan().any()


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


def slope_bias(queries, keys, device):
    place = torch.arange(keys - queries, keys)[:, None]
    return -torch.tensor([0.3, 0.1])[:, None, None] * (place - torch.arange(keys)).abs()


@settings(max_examples=60)
@given(
    lengths=LENGTHS,
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 40]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.5]),
    rotated=st.sampled_from([0, 4, SIZE]),
    biased=st.booleans(),
)
def test_every_rule_equals_each_sequence_alone(
    lengths, causal, window, softcap, scale, rotated, biased
):
    qkv, rotary, layout = pack(lengths, 2, 1)
    rotary = rotary[..., : rotated // 2] if rotated else None
    fast, slow = both(
        qkv,
        rotary,
        layout,
        2,
        1,
        slope_bias if biased else None,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
    )
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@settings(max_examples=40)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=7),
    kv_heads=st.sampled_from([1, 2]),
)
def test_queries_see_the_source_with_their_number(pairs, kv_heads):
    generator = torch.Generator().manual_seed(2)
    lengths, sources = zip(*pairs, strict=True)
    if not any(lengths):
        return
    rule = AttentionRule(2, kv_heads, causal=False)
    q = torch.randn(sum(lengths), 2, SIZE, generator=generator)
    k, v = torch.randn(2, sum(sources), kv_heads, SIZE, generator=generator)
    layout, source = (
        PackedLayout(torch.tensor([0, *sizes]).cumsum(0).int()) for sizes in (lengths, sources)
    )
    found = packed_cross_attention(q, k, v, layout, source, rule).view(-1, 2, SIZE)
    for qs, ks, vs, out in zip(
        q.split(lengths), k.split(sources), v.split(sources), found.split(lengths), strict=True
    ):
        repeat = 2 // kv_heads
        scores = torch.einsum("thd,shd->hts", qs, ks.repeat_interleave(repeat, 1)) / SIZE**0.5
        expected = torch.einsum("hts,shd->thd", scores.softmax(-1), vs.repeat_interleave(repeat, 1))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("uncut", [4, 192])
@pytest.mark.parametrize("rotated", [0, 4, SIZE])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_both_sides_of_whole_groups_with_gradients(monkeypatch, uncut, rotated, scale):
    monkeypatch.setattr(packed, "_UNCUT", uncut)
    monkeypatch.setattr(packed, "_BLOCK", 5)
    qkv, rotary, layout = pack([9, 9, 9, 3], 4, 2)
    assert bool(layout.valid.all())
    rotary = rotary[..., : rotated // 2] if rotated else None
    for causal in (False, True):
        fast, slow = both(qkv, rotary, layout, 4, 2, causal=causal, scale=scale)
        for ours, theirs in zip(fast, slow, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
