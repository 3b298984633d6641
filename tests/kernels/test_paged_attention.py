import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import AttentionRule, attention
from hone.kernels.paged import paged_attention_reference, steady_rows
from hone.kernels.paged_pool import Pool, quantize

CPU = torch.device("cpu")


@settings(max_examples=10)
@given(
    length=st.integers(1, 70),
    queries=st.integers(1, 9),
    size=st.sampled_from([4, 16, 32]),
    window=st.sampled_from([None, 6]),
)
def test_the_reference_is_attention_to_positions_in_their_order(length, queries, size, window):
    generator = torch.Generator().manual_seed(length)
    queries = min(queries, length)
    rule = AttentionRule(6, 2, window=window)
    q = torch.randn(queries, 6, 8, generator=generator)
    kv = torch.randn(2, 2, length, 8, generator=generator)
    count = -(-length // size)
    table = (torch.randperm(count + 3, generator=generator)[:count] + 1).tolist()
    pools = torch.full((2, count + 4, 2, size, 8), float("nan"))
    for at in range(length):
        pools[:, table[at // size], :, at % size] = kv[:, :, at]
    expected = attention(q.transpose(0, 1)[None], kv[:1], kv[1:], rule)[0].transpose(0, 1)
    found = paged_attention_reference(q, pools[0], pools[1], table, length, rule)
    torch.testing.assert_close(found, expected)


@settings(max_examples=10)
@given(size=st.sampled_from([1, 7, 64]), power=st.integers(-30, 30), zeros=st.booleans())
def test_eight_bits_are_off_by_half_a_step_at_most(size, power, zeros):
    x = torch.randn(5, 3, size, generator=torch.Generator().manual_seed(size)) * 2.0**power
    if zeros:
        x[2] = 0
    whole, scale = quantize(x)
    error = (whole.float() * scale[..., None] - x).abs()
    assert (error <= x.abs().amax(-1, keepdim=True) * (1 / 254 + 1e-6)).all()
    assert not zeros or not whole[2].any()


def test_vectors_are_moved_all_at_once():
    pool = Pool.of((3, 2, 4, 5), torch.int8, CPU)
    x = torch.randn(8, 2, 5, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[(block * 2 + h) * 4 + slot for h in range(2)]
                           for block in (1, 2) for slot in range(4)]).flatten()  # fmt: skip
    pool.write(places, x)
    before = pool.numbers(torch.float32).clone()
    pool.move(places[:4], places[2:6])  # a chain: tokens 0 and 1 to where 1 and 2 are
    after = pool.numbers(torch.float32)
    assert after[1, :, 1].equal(before[1, :, 0])
    assert after[1, :, 2].equal(before[1, :, 1])
    assert after[1, :, 3].equal(before[1, :, 3])


@pytest.mark.parametrize("block_size", [16, 32])
def test_steady_rows_are_what_they_say(block_size):
    least = steady_rows(64, block_size, torch.float32, CPU, torch.get_num_threads())
    if least is None:
        pytest.skip("products of this processor depend on the number of their rows")
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(5, 90, 64, generator=generator)
    k = torch.randn(5, 3 * block_size, 64, generator=generator)
    whole = torch.bmm(q, k.transpose(1, 2))
    for rows in (least, least + 1, 16, 55):
        own, of = slice(11, 11 + rows), slice(block_size, 2 * block_size)
        part = torch.bmm(q[2:4, own].contiguous(), k[2:4, of].transpose(1, 2))
        assert part.equal(whole[2:4, own, of])
