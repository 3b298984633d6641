"""Drawing among weights, and the random numbers that it takes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.engine.drawing import draw, floors, floors_reference, largest, likeliest
from hone.engine.random_numbers import philox, uniforms

# Random numbers.


@pytest.mark.smoke
def test_philox_gives_the_published_words():
    # Random123, kat_vectors: philox 4x32, 10 rounds.
    counters = np.array(
        [
            [0, 0, 0, 0],
            [0xFFFFFFFF] * 4,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        ],
        dtype=np.uint32,
    ).T
    keys = np.array([[0, 0], [0xFFFFFFFF] * 2, [0xA4093822, 0x299F31D0]], dtype=np.uint32).T
    assert [[f"{word:08x}" for word in words] for words in philox(counters, keys).T] == [
        ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"],
        ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"],
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
    ]


def _uniforms(seeds, streams, indices) -> np.ndarray:
    seeds, streams, indices = np.broadcast_arrays(seeds, streams, indices)
    return uniforms(
        seeds.astype(np.uint64).ravel(),
        streams.astype(np.uint32).ravel(),
        indices.astype(np.int64).ravel(),
    ).reshape(seeds.shape)


@pytest.mark.smoke
def test_a_random_number_is_that_of_its_place():
    seeds, indices = np.arange(50)[:, None] * 2**40 + 7, np.arange(40)[None]
    every = _uniforms(seeds, 3, indices)
    assert every.min() >= 0
    assert every.max() < 1
    assert len(np.unique(every)) == every.size
    assert _uniforms(seeds[12:13], 3, indices[:, ::-1]) == pytest.approx(every[12:13, ::-1], abs=0)
    assert (_uniforms(seeds, 4, indices) != every).all()
    assert (_uniforms(seeds, 3, indices + 2**33) != every).all()


@pytest.mark.parametrize(
    "seeds", [np.arange(300), np.arange(300) << 32, 2**64 - 1 - np.arange(300, dtype=np.uint64)]
)
def test_random_numbers_are_uniform_and_independent_of_their_neighbours(seeds):
    values = _uniforms(np.asarray(seeds, dtype=np.uint64)[:, None], 0, np.arange(300)[None])
    cells = np.floor(values * 16).astype(int)
    _assert_even(np.bincount(cells.ravel(), minlength=16))
    # Pairs: of consecutive indices, of consecutive seeds, and of streams of one seed.
    _assert_even(np.bincount((cells[:, :-1] * 16 + cells[:, 1:]).ravel(), minlength=256))
    _assert_even(np.bincount((cells[:-1] * 16 + cells[1:]).ravel(), minlength=256))
    other = _uniforms(np.asarray(seeds, dtype=np.uint64)[:, None], 1, np.arange(300)[None])
    pairs = cells * 16 + np.floor(other * 16).astype(int)
    _assert_even(np.bincount(pairs.ravel(), minlength=256))
    for shifted in (values[:, 1:] - 0.5, values[1:] - 0.5):
        kept = values[tuple(slice(n) for n in shifted.shape)] - 0.5
        assert abs((kept * shifted).mean() * 12) < 4 / math.sqrt(kept.size)


def _assert_even(counts: np.ndarray) -> None:
    expected = counts.sum() / len(counts)
    assert_chi_square(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


def assert_chi_square(found: float, freedom: int) -> None:
    """Within four deviations (Wilson and Hilferty's cube root is nearly normal)."""
    spread = 2 / (9 * freedom)
    assert abs(((found / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)) < 4


# The parts of drawing.


@pytest.mark.smoke
@pytest.mark.parametrize("vocabulary", [1, 2, 100, 128, 129, 256, 257, 1000, 4096, 5001])
def test_the_likeliest_token_is_the_first_of_the_greatest(vocabulary):
    x = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    x[0] = -math.inf
    x[1, -1] = 9.0
    values, ids = likeliest(x)
    assert values.equal(x.amax(-1))
    first = [row.index(max(row)) for row in x.tolist()]
    assert ids.tolist() == first
    x[2, vocabulary // 2] = math.nan
    assert likeliest(x)[0].isnan().tolist() == [False, False, True] + [False] * 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([1, 5, 130, 1000, 4099, 20_000]),
    share=st.floats(0, 1),
    decimals=st.sampled_from([0, 1, 6]),
)
def test_the_largest_are_those_of_topk(seed, vocabulary, share, decimals):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, vocabulary, generator=generator).round(decimals=decimals)
    count = min(1024, max(1, round(share**3 * vocabulary)))
    values, ids = largest(x, count)
    assert values.equal(x.topk(count).values)
    assert x.gather(1, ids).equal(values)
    assert all(len(set(row)) == count for row in ids.tolist())


def _columns(k, p, m) -> tuple:
    return (
        torch.tensor(k)[:, None],
        torch.tensor(p, dtype=torch.float64)[:, None],
        torch.tensor(m, dtype=torch.float32)[:, None],
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), vocabulary=st.sampled_from([7, 300, 5000, 9001]))
def test_floors_by_candidates_are_those_of_a_full_sort(data, seed, vocabulary):
    rows = 5
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([[0.0], [0.1], [1.0], [4.0], [20.0]])
    x = torch.randn(rows, vocabulary, generator=generator) * spread
    x = x.round(decimals=data.draw(st.sampled_from([0, 2, 6])))
    every = st.lists(st.one_of(st.integers(1, 60), st.integers(1, vocabulary), st.just(vocabulary)))
    k = [min(n, vocabulary) for n in data.draw(every.filter(lambda x: len(x) >= rows))[:rows]]
    share = st.one_of(st.just(1.0), st.floats(0.001, 1.0))
    p = data.draw(st.lists(share, min_size=rows, max_size=rows))
    m = data.draw(st.lists(st.floats(0, 1), min_size=rows, max_size=rows))
    probabilities = x.softmax(-1)
    columns = _columns(k, p, m)
    found = floors(probabilities, *columns)
    assert found.equal(floors_reference(probabilities, *columns))
    # A row's own, whatever is beside it.
    for row in range(rows):
        alone = floors(probabilities[row : row + 1], *(x[row : row + 1] for x in columns))
        assert alone.equal(found[row : row + 1])


@pytest.mark.smoke
@pytest.mark.parametrize("vocabulary", [4, 128, 129, 300, 1024])
def test_draws_follow_the_weights(vocabulary):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(vocabulary, generator=generator).exp()
    weights[torch.rand(vocabulary, generator=generator) < 0.3] = 0
    weights[1] = 0
    weights[2] = 1
    rows = 20_000
    uniform = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows
    counts = draw(weights.expand(rows, -1), uniform).bincount(minlength=vocabulary)
    assert ((counts - weights / weights.sum() * rows).abs() <= 1.01).all()
    assert counts[weights == 0].sum() == 0


@pytest.mark.smoke
@pytest.mark.parametrize("share", [0.0, 1 - 2**-53, 0.5, math.nextafter(0.5, 0)])
def test_a_draw_at_a_border_has_weight(share):
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(200, 700, generator=generator)
    weights *= torch.rand(200, 700, generator=generator) < torch.rand(200, 1, generator=generator)
    weights[:20, :300] = 0  # whole chunks without weight
    weights[:, 350] += 1e-6
    ids = draw(weights, torch.full((200, 1), share, dtype=torch.float64))
    assert (weights.gather(1, ids[:, None]) > 0).all()
