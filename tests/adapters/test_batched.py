"""A layer with the updates of several adapters, each for its own rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hone.adapters.batched import BatchedLora, Runs
from hone.kernels import project
from hone.kernels.lora import LowRank, lora_product_reference
from hone.quant import Int8Linear
from hone.quant.int8 import quantize_rows

E, F = 48, 64


def _base(seed=0, kind="float", outputs=F) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(E, outputs)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.normal_(generator=generator)
    if kind == "float":
        return linear.requires_grad_(False)
    quantized = Int8Linear(E, outputs, True)
    quantized.weight, quantized.weight_scale = quantize_rows(linear.weight, torch.float32)
    quantized.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return quantized


def _update(number, outputs=F, dora=False) -> LowRank:
    generator = torch.Generator().manual_seed(100 + number)
    rank = (3, 16, 1, 8)[number % 4]
    gain_F = torch.rand(outputs, generator=generator) + 0.5 if dora else None
    a_RE = torch.randn(rank, E, generator=generator)
    b_FR = torch.randn(outputs, rank, generator=generator)
    return LowRank(a_RE, b_FR, 0.7 + number, 0.0, gain_F)


RUNS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.integers(1, 6)), min_size=1, max_size=6
)


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=25, deadline=None)
@given(runs=RUNS, behind=st.integers(0, 3))
def test_each_row_gets_the_update_of_its_own_adapter(kind, exact, runs, behind):
    base = _base(kind=kind)
    # Adapter 4 has no update of this layer; two have a gain.
    updates = {number: _update(number, dora=number in (1, 3)) for number in (2, 0, 3, 1)}
    state = Runs(exact, torch.device("cpu"))
    layer = BatchedLora(base, updates, state, torch.float32)
    rows = sum(count for _, count in runs)
    x_NE = torch.randn(rows + behind, E, generator=torch.Generator().manual_seed(rows))
    state.set(runs)
    found_NF, plain_NF = layer(x_NE), base(x_NE)
    start = 0
    for number, count in [*runs, (None, behind)]:
        part = slice(start, start := start + count)
        if number in updates:
            expected = lora_product_reference(x_NE[part], base, updates[number])
            torch.testing.assert_close(found_NF[part], expected, rtol=1e-4, atol=1e-3)
        else:
            assert found_NF[part].equal(plain_NF[part])


@pytest.mark.smoke
def test_layers_that_are_one_product_each_get_their_own_updates():
    bases = [_base(1), _base(2, outputs=16), _base(3, outputs=32)]
    state = Runs(False, torch.device("cpu"))
    q = BatchedLora(bases[0], {0: _update(0), 1: _update(1)}, state, torch.float32)
    v = BatchedLora(bases[2], {1: _update(2, 32)}, state, torch.float32)
    x_NE = torch.randn(7, E, generator=torch.Generator().manual_seed(4))
    state.set([(0, 2), (None, 1), (1, 4)])
    found = project(x_NE, (q, bases[1], v))
    expected = torch.cat([q(x_NE), bases[1](x_NE), v(x_NE)], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert not q(x_NE)[:2].equal(bases[0](x_NE)[:2])
    assert v(x_NE)[:3].equal(bases[2](x_NE)[:3])


@settings(max_examples=30, deadline=None)
@given(runs=RUNS, order=st.randoms(use_true_random=False))
def test_bits_of_a_row_do_not_depend_on_the_adapters_beside_it(runs, order):
    base = _base()
    state = Runs(True, torch.device("cpu"))
    updates = {number: _update(number, dora=number == 3) for number in range(4)}
    layer = BatchedLora(base, updates, state, torch.float32)
    rows = [number for number, count in runs for _ in range(count)]
    x_NE = torch.randn(48, E, generator=torch.Generator().manual_seed(9))
    state.set([(number, 1) for number in rows])
    together = layer(x_NE)[: len(rows)]
    moved = list(range(len(rows)))
    order.shuffle(moved)
    state.set([(rows[place], 1) for place in moved])
    assert layer(x_NE[moved + list(range(len(rows), 48))])[: len(rows)].equal(together[moved])
    for place, number in enumerate(rows):
        state.set([(number, 1)])
        alone = torch.cat((x_NE[place : place + 1], torch.zeros(47, E)))
        assert layer(alone)[0].equal(together[place])


@pytest.mark.smoke
def test_fewer_rows_than_announced_are_a_mistake():
    state = Runs(False, torch.device("cpu"))
    layer = BatchedLora(_base(), {0: _update(0)}, state, torch.float32)
    state.set([(0, 5)])
    with pytest.raises(AssertionError, match="fewer rows"):
        layer(torch.zeros(4, E))
