import pytest
import torch

from hone.kernels.attention import attention


def by_the_formula(q, k, v, visible):
    """Softmax attention written out, in float64, for one batch of full head count."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeat, 1), v.double()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return p @ v.repeat_interleave(repeat, 1)


@pytest.mark.smoke
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (1, 7), (3, 9)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_last_queries_of_all_positions(queries, keys, kv_heads):
    torch.manual_seed(5)
    q = torch.randn(2, 4, queries, 8)
    k, v = torch.randn(2, kv_heads, keys, 8), torch.randn(2, kv_heads, keys, 8)
    place = torch.arange(keys - queries, keys)[:, None]
    visible = (torch.arange(keys)[None] <= place)[None, None]
    expected = by_the_formula(q, k, v, visible)
    torch.testing.assert_close(attention(q, k, v).double(), expected, atol=1e-5, rtol=1e-5)
    everywhere = torch.ones(2, keys, dtype=torch.int64)
    masked = attention(q, k, v, everywhere)
    torch.testing.assert_close(masked.double(), expected, atol=1e-5, rtol=1e-5)


def test_left_padding_is_invisible_and_stays_finite():
    torch.manual_seed(6)
    q, k, v = torch.randn(1, 2, 6, 8), torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    padded = attention(q, k, v, mask)
    alone = attention(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:])
    torch.testing.assert_close(padded[:, :, 2:], alone)
    assert padded.isfinite().all()
    # One step of decoding with the same padding.
    step = attention(q[:, :, 5:], k, v, mask)
    torch.testing.assert_close(step, alone[:, :, 3:])
