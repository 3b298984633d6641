import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import CapacityError
from hone.engine.cache import RowCache
from hone.kernels import AttentionRule, rotary_table
from hone.kernels.decode import decode_attention, decode_attention_reference
from hone.models import ModelConfig

RULE = AttentionRule(6, 2)
CONFIG = ModelConfig(
    vocab_size=9,
    hidden_size=24,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=2,
)


def attend_alone(qkv_NC, length):
    """Causal attention of one sequence, from the whole of it."""
    q, k, v = qkv_NC.view(length, 10, 4).split((6, 2, 2), dim=1)
    k, v = (x.repeat_interleave(3, dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / 2
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v).reshape(length, 24)


def no_rotation(tokens):
    return rotary_table(torch.zeros(tokens, dtype=torch.int64), torch.ones(2), torch.float32)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    steps=st.sampled_from([0, 1, 5, 70]),
    data=st.data(),
)
def test_rows_of_any_lengths_attend_to_themselves_only(lengths, steps, data):
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(length + 80, 40, generator=generator) for length in lengths]
    cache = RowCache(CONFIG, len(lengths), torch.float32)
    cache.begin(lengths)
    prompt = torch.cat([row[:n] for row, n in zip(rows, lengths, strict=True)])
    assert cache.positions().tolist() == [p for n in lengths for p in range(n)]
    out = cache.attend(0, prompt, no_rotation(len(prompt)), RULE, None)
    expected = [attend_alone(row[:n], n) for row, n in zip(rows, lengths, strict=True)]
    torch.testing.assert_close(out, torch.cat(expected), atol=1e-5, rtol=1e-5)
    cache.advance()
    for step in range(steps):
        if step == 2 and len(rows) > 1:
            kept = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
            cache.select_rows(kept)
            rows, lengths = [rows[i] for i in kept], [lengths[i] for i in kept]
        now = [n + step for n in lengths]
        cache.begin([1] * len(rows))
        assert cache.positions().tolist() == now
        tokens = torch.stack([row[at] for row, at in zip(rows, now, strict=True)])
        padded = torch.cat((tokens, torch.zeros(2, 40)))
        out = cache.attend(0, padded, no_rotation(len(padded)), RULE, None)
        cache.advance()
        if step in (0, 2, steps - 1):
            last = [attend_alone(r[: at + 1], at + 1)[-1] for r, at in zip(rows, now, strict=True)]
            torch.testing.assert_close(out[:-2], torch.stack(last), atol=1e-5, rtol=1e-5)
            assert not out[-2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_decode_attention_equals_its_reference(dtype, heads, kv_heads):
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(3, heads, 8, generator=generator).to(dtype)
    block = torch.randn(2, 3, kv_heads, 40, 8, generator=generator).to(dtype)
    k, v = block[0, :, :, :29], block[1, :, :, :29]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        decode_attention(q, k, v),
        decode_attention_reference(q, k, v),
        atol=tolerance,
        rtol=tolerance,
    )


def test_a_cache_that_does_not_fit_is_refused_with_a_sentence():
    cache = RowCache(CONFIG, 1, torch.float32)
    with pytest.raises(CapacityError, match="no memory"):
        cache.begin([2**46])
