import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hone.kernels.positions import alibi_slopes, relative_buckets, sinusoids


@pytest.mark.smoke
def test_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-k for k in range(1, 9)]
    torch.testing.assert_close(alibi_slopes(16)[:2], torch.tensor([2**-0.5, 0.5]))
    # 12 heads: those of 8, then the 1st, 3rd, 5th and 7th of 16.
    expected = [2.0**-k for k in range(1, 9)] + [2 ** (-k / 2) for k in (1, 3, 5, 7)]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))


def test_slopes_are_bloom_s():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    mask = torch.ones(1, 2)
    for heads in (*range(1, 41), 48, 63, 64, 71, 112, 128):
        theirs = build_alibi_tensor(mask, heads, torch.float32)[:, 0, 1]
        slopes = alibi_slopes(heads)
        assert slopes.dtype == torch.float32
        assert torch.equal(slopes, theirs), heads


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "distance"), [(32, 128), (8, 20), (4, 3), (7, 9), (64, 1000)])
def test_buckets_are_t5_s(count, distance, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    reach = 2 * distance
    relative = torch.arange(-reach, reach + 1)
    theirs = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=count, max_distance=distance
    )
    ours = relative_buckets(relative, count, distance, bidirectional)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, theirs)

    queries, keys = torch.arange(5, 12), torch.arange(40)
    square = keys[None, :] - queries[:, None]
    for part in (square, square[:1], square[:, :3]):
        theirs = T5Attention._relative_position_bucket(part, bidirectional, count, distance)
        assert torch.equal(relative_buckets(part, count, distance, bidirectional), theirs)


@given(st.integers(4, 80), st.integers(1, 300), st.booleans())
def test_buckets_grow_with_distance_and_use_no_more_than_there_are(count, extra, bidirectional):
    distance = count // 2 + extra
    behind = relative_buckets(-torch.arange(3 * distance), count, distance, bidirectional)
    limit = count // 2 if bidirectional else count
    assert behind[0] == 0
    assert (behind.diff() >= 0).all()
    assert behind[distance:].unique().tolist() == [limit - 1]
    exact = limit // 2
    assert behind[:exact].tolist() == list(range(exact))
    ahead = relative_buckets(torch.arange(3 * distance), count, distance, bidirectional)
    if bidirectional:
        assert torch.equal(ahead[1:], behind[1:] + limit)
    else:
        assert (ahead == 0).all()


@pytest.mark.parametrize("size", [2, 6, 7, 48])
def test_sinusoids_are_marian_s(size):
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(3000, size).create_weight()
    positions = torch.tensor([0, 1, 2, 17, 511, 2999])
    ours = sinusoids(positions, size)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs[positions], atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [2, 6, 7])
def test_interleaved_sinusoids_are_the_papers(size):
    positions = [0, 1, 5, 100_003]
    ours = sinusoids(torch.tensor(positions), size, interleaved=True)
    for row, position in zip(ours, positions, strict=True):
        for i in range(size):
            angle = position / 10000 ** (2 * (i // 2) / size)
            assert math.isclose(row[i], np.cos(angle) if i % 2 else np.sin(angle), abs_tol=1e-7)
