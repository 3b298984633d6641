"""The paged cache computes attention, and in the exact mode always the same bits of it."""

import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hone.engine.paged as paged
from hone.core.errors import CapacityError
from hone.engine.invariance import pad_experts, pad_rows, safe_row_counts
from hone.engine.paged import PagedCache, Row
from hone.kernels import AttentionRule, attention
from hone.kernels.positions import alibi_slopes
from hone.models import Alibi, Buckets, CausalLM, Experts, ModelConfig, StateSpace


class Slopes:
    """ALiBi's bias."""

    def __init__(self, heads):
        self.slopes = alibi_slopes(heads)

    def __call__(self, queries, keys, device):
        distance = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
        return -self.slopes[:, None, None] * distance.abs()


def make(rule, head, blocks, size, dtype="float32", exact=True):
    config = ModelConfig(
        9, rule.heads * head, 8, 1, rule.heads, num_key_value_heads=rule.kv_heads, head_dim=head
    )
    cache = PagedCache(config, blocks, size, dtype, exact=exact)
    for pool in cache._pools[0]:  # what an earlier owner may have left
        for part in pool.parts:
            if part.is_floating_point():
                part[1:] = float("nan")
    return cache


def whole(x, rule, bias):
    """Attention of one sequence by itself."""
    heads, kv_heads = rule.heads, rule.kv_heads
    parts = x.view(len(x), heads + 2 * kv_heads, -1).split((heads, kv_heads, kv_heads), 1)
    q, k, v = (part.transpose(0, 1)[None] for part in parts)
    return attention(q, k, v, rule, bias)[0].transpose(0, 1).flatten(1)


def run(cache, rule, bias, sequences, tables, counts, shuffle):
    """All of the sequences in passes of ``counts()`` tokens of each."""
    held, out = [0] * len(sequences), [[] for _ in sequences]
    while any(h < len(x) for h, x in zip(held, sequences, strict=True)):
        order = list(range(len(sequences)))
        shuffle(order)
        news = [min(len(sequences[i]) - held[i], counts()) for i in order]
        cache.begin([Row(tables[i], held[i], new) for i, new in zip(order, news, strict=True)])
        x = torch.cat(
            [sequences[i][held[i] : held[i] + n] for i, n in zip(order, news, strict=True)]
        )
        o = cache.attend(0, torch.cat((x, torch.zeros(3, x.shape[1]))), None, rule, bias)
        assert not o[len(x) :].any()
        for i, part in zip(order, o[: len(x)].split(news), strict=True):
            out[i].append(part)
            held[i] += len(part)
    return [torch.cat(parts) for parts in out]


@settings(max_examples=10)
@given(
    lengths=st.lists(st.sampled_from([1, 7, 17, 33, 60]), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 4]),
    head=st.sampled_from([4, 16, 64]),
    size=st.sampled_from([4, 16, 32]),
    window=st.sampled_from([None, 5, 20]),
    cap=st.sampled_from([None, 3.0]),
    biased=st.booleans(),
    dtype=st.sampled_from(["float32", "float32", "bfloat16", "int8"]),
    seed=st.integers(0, 99),
)
def test_bits_depend_on_the_sequence_alone(
    lengths, kv_heads, shared, head, size, window, cap, biased, dtype, seed
):
    heads, draw = kv_heads * shared, random.Random(seed)
    rule = AttentionRule(heads, kv_heads, window=window, softcap=cap)
    bias = Slopes(heads) if biased else None
    generator = torch.Generator().manual_seed(seed)
    width = (heads + 2 * kv_heads) * head
    sequences = [torch.randn(length, width, generator=generator) for length in lengths]
    blocks = sum(-(-length // size) for length in lengths) + 20
    ways = {
        "whole": lambda: 99,
        "one by one": lambda: 1,
        "drafts": lambda: draw.choice([1, 2, 3]),
        "chunks": lambda: draw.choice([0, 1, 17, 40]),
    }
    results = {}
    for exact in (True, False):
        for way, counts in ways.items():
            if not exact and way == "one by one":
                continue  # as with drafts
            free = list(range(1, blocks))
            draw.shuffle(free)
            tables = [[free.pop() for _ in range(-(-n // size))] for n in lengths]
            cache = make(rule, head, blocks, size, dtype, exact)
            found = run(cache, rule, bias, sequences, tables, counts, draw.shuffle)
            results[exact, way] = found
    tolerance = {"float32": 2e-5, "bfloat16": 0.05, "int8": 0.15}[dtype]
    for i, x in enumerate(sequences):
        expected = whole(x, rule, bias)
        for (exact, way), found in results.items():
            torch.testing.assert_close(found[i], expected, atol=tolerance, rtol=0)
            assert not exact or found[i].equal(results[True, "whole"][i]), way


def test_products_of_one_shape_do_where_rows_are_not_steady(monkeypatch):
    monkeypatch.setattr(paged, "steady_rows", lambda *_: None)
    rule = AttentionRule(4, 2)
    x = torch.randn(50, 8 * 16, generator=torch.Generator().manual_seed(1))
    found = [
        run(make(rule, 16, 9, 16), rule, None, [x], [table], lambda n=n: n, lambda _: None)[0]
        for n, table in ((50, [1, 2, 3, 4]), (7, [8, 3, 5, 1]), (1, [4, 3, 2, 1]))
    ]
    torch.testing.assert_close(found[0], whole(x, rule, None))
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("window", [None, 6])
def test_a_tree_sees_what_chains_see(exact, window):
    rule, generator = AttentionRule(4, 2, window=window), torch.Generator().manual_seed(4)
    bias = Slopes(4)
    parents, held = [-1, 0, 0, 1, 2, 4], 14
    x = torch.randn(held + 6, 8 * 16, generator=generator)
    cache, table = make(rule, 16, 9, 16, exact=exact), [5, 2]
    cache.begin([Row(table, 0, held)])
    cache.attend(0, x[:held], None, rule, bias)
    row = Row(table, held, 6, parents)
    cache.begin([row])
    assert cache.positions().tolist() == [14, 15, 15, 16, 16, 17]
    tree = cache.attend(0, x[held:], None, rule, bias)
    same = torch.equal if exact else partial(torch.allclose, atol=1e-5)
    for token in range(6):
        chain = x[[*range(held), *(held + node for node in row.chain(token))]]
        alone = make(rule, 16, 9, 16, exact=exact)
        alone.begin([Row([1, 3], 0, len(chain))])
        assert same(alone.attend(0, chain, None, rule, bias)[-1], tree[token])
    # The branch 0, 2, 4, 5 is kept: it moves to where a chain has it, and goes on.
    cache.move(
        [(table, held + 2, held + 1), (table, held + 4, held + 2), (table, held + 5, held + 3)]
    )
    cache.begin([Row(table, held + 4, 1)])
    after = cache.attend(0, x[:1], None, rule, bias)[0]
    chain = torch.cat((x[[*range(held), *(held + node for node in row.chain(5))]], x[:1]))
    alone.begin([Row([4, 6], 0, len(chain))])
    assert same(alone.attend(0, chain, None, rule, bias)[-1], after)


def test_blocks_may_be_shared_and_copied():
    rule, generator = AttentionRule(4, 2), torch.Generator().manual_seed(5)
    x = torch.randn(2, 41, 8 * 16, generator=generator)
    x[1, :37] = x[0, :37]
    cache = make(rule, 16, 20, 16)
    cache.begin([Row([1, 2, 3], 0, 37)])
    cache.attend(0, x[0, :37], None, rule, None)
    cache.copy([(3, 9)])
    cache.begin([Row([1, 2, 3], 37, 4), Row([1, 2, 9], 37, 4)])
    found = cache.attend(0, x[:, 37:].flatten(0, 1), None, rule, None).view(2, 4, -1)
    for row in range(2):
        assert torch.allclose(found[row], whole(x[row], rule, None)[37:], atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_sources_are_seen_whole(exact):
    rule, generator = AttentionRule(4, 2, causal=False), torch.Generator().manual_seed(6)
    lengths, source_lengths = [1, 20, 3], [40, 5, 17]
    q = torch.randn(24, 4, 16, generator=generator)
    kv = torch.randn(2, sum(source_lengths), 2, 16, generator=generator)
    tables = [[1, 2, 3], [7], [9, 4]]
    cache = make(rule, 16, 12, 16, exact=exact)

    def rows(news):
        return [
            Row([10, 11], 0, new, source_table=table, source_length=length)
            for new, table, length in zip(news, tables, source_lengths, strict=True)
        ]

    for pool in cache._pools[0]:
        pool.clean(torch.arange(12))
    cache.begin(rows(lengths), [0, 1, 2])
    found = cache.attend_source(0, q, lambda: (kv[0], kv[1]), rule)
    expected = []
    for mine, k, v in zip(
        q.split(lengths), kv[0].split(source_lengths), kv[1].split(source_lengths), strict=True
    ):
        parts = [part.transpose(0, 1)[None] for part in (mine, k, v)]
        expected.append(attention(*parts, rule)[0].transpose(0, 1).flatten(1))
    torch.testing.assert_close(found, torch.cat(expected))
    cache.begin(rows([0, 1, 0]))
    later = cache.attend_source(0, q[1:2], lambda: pytest.fail("they are known"), rule)
    assert torch.allclose(later[0], found[1], atol=1e-6)
    assert not exact or later[0].equal(found[1])


CHOICES = {
    "window and caps": {"sliding_window": 6, "sliding_layers": (0,), "attention_softcap": 5.0},
    "alibi": {"positions": Alibi()},
    "buckets": {"positions": Buckets()},
    "experts": {"experts": Experts(4, 2, 32, shared_size=16)},
    "mamba": {"mixer": "mamba", "state_space": StateSpace(96, 8, rank=3)},
    "mamba2": {"mixer": "mamba2", "state_space": StateSpace(96, 8, heads=16)},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_logits_of_a_model_are_the_same_bits_however_prompts_are_cut(choice):
    config = ModelConfig(
        99, 48, 80, 2, 6, num_key_value_heads=2, initializer_range=0.25, **CHOICES[choice]
    )
    model = CausalLM(config)
    model.initialise(seed=3)
    counts = safe_row_counts(model)
    if counts is None:
        pytest.skip("no count of rows makes this processor's products independent of their rows")
    pad_experts(model, counts)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 99, (n,), generator=generator) for n in (140, 30, 9)]

    @torch.inference_mode()
    def logits(sizes, company):
        cache = PagedCache(config, 30, 16, "float32", slots=3)
        tables = [[*range(20, 11, -1)], [3, 9], [8]]
        step, held, out = 0, [0, 0, 0], []
        while held[0] < 140:
            rows = [
                Row(tables[i], held[i], min(len(prompts[i]) - held[i], sizes[step % len(sizes)]))
                for i in range(3 if company else 1)
            ]
            for i, row in enumerate(rows):
                row.slot = i
            cache.begin(rows)
            ids = torch.cat([prompts[i][row.held :][: row.new] for i, row in enumerate(rows)])
            positions = pad_rows(cache.positions(), counts)
            hidden = model.decoder(pad_rows(ids, counts), positions, cache)[: rows[0].new]
            out.append(model.logits(pad_rows(hidden, counts))[: rows[0].new])
            held = [row.held + row.new for row in rows] + held[len(rows) :]
            step += 1
        return torch.cat(out)

    cuts = [[140], [64], [128, 5, 7]]
    if PagedCache(config, 1, 16, "float32").chunk_multiple == 1:
        cuts += [[1], [5], [50, 1, 1, 3]]
    else:
        cuts[2:] = [[128, 12]]
    expected = logits([140], False)
    for sizes in cuts:
        assert logits(sizes, True).equal(expected), sizes


def test_a_cleared_slot_holds_no_state():
    config = ModelConfig(9, 48, 8, 1, mixer="mamba", state_space=StateSpace(96, 8, rank=3))
    cache = PagedCache(config, 1, 16, "float32", slots=3)
    cache.begin([Row([], 0, 1, slot=2), Row([], 0, 1, slot=0)])
    assert cache.state(0) is None
    state = torch.randn(2, 8, 96).transpose(1, 2)
    cache.keep(0, (state,))
    cache.clear_slot(2)
    cache.begin([Row([], 1, 1, slot=0), Row([], 0, 1, slot=2), Row([], 0, 1, slot=1)])
    (found,) = cache.state(0)
    assert found[0].equal(state[1])
    assert not found[1:].any()
    assert PagedCache.block_bytes(config, 16, "float32") == 0


@pytest.mark.smoke
@pytest.mark.parametrize(("dtype", "bytes_"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_the_size_of_a_block_is_what_is_allocated(dtype, bytes_):
    config = ModelConfig(9, 64, 8, 3, 4, num_key_value_heads=2)
    cache = PagedCache(config, 7, 32, dtype)
    taken = sum(
        part.numel() * part.element_size()
        for pools in cache._pools
        for pool in pools
        for part in pool.parts
    )
    size = PagedCache.block_bytes(config, 32, dtype)
    assert taken == 7 * size
    assert size == 3 * 2 * 2 * 32 * (16 * bytes_ + (4 if dtype == "int8" else 0))


def test_pools_that_do_not_fit_are_refused_with_a_sentence():
    config = ModelConfig(9, 64, 8, 3, 4)
    with pytest.raises(CapacityError, match=r"no memory .* 1,099,511,627,776 blocks"):
        PagedCache(config, 2**40, 16, "float32")
