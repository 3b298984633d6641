import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batches, tiny_model

from hone.train import TensorBatch, TrainConfig
from hone.train.memory import measure_peak
from hone.train.optimizers import Optimizer, paged
from hone.train.optimizers.adamw_8bit import SMALLEST, AdamW8bit
from hone.train.optimizers.blockwise import (
    BLOCK,
    dequantize,
    dynamic_map,
    quantize,
    quantize_reference,
)

CONFIG = TrainConfig(steps=99, optimizer="adamw_8bit", weight_decay=0.1)


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def blocks(count, seed, spread=3.0):
    """Numbers of many sizes, as moments are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(count, BLOCK, generator=generator).mul(spread).exp()
    return torch.randn(count, BLOCK, generator=generator) * sizes


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_that_of_bitsandbytes(bitsandbytes, signed):
    theirs = bitsandbytes.functional.create_dynamic_map(signed)
    assert torch.allclose(torch.tensor(dynamic_map(signed)), theirs, rtol=1e-6, atol=0)


@pytest.mark.smoke
@settings(max_examples=20)
@given(st.integers(0, 999), st.floats(0, 6), st.booleans())
def test_codes_are_those_of_the_nearest_values(seed, spread, signed):
    x = blocks(4, seed, spread)
    x = x if signed else x.square()
    codes, scale = quantize(x, signed)
    expected, expected_scale = quantize_reference(x, signed)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_beside_every_boundary_find_their_side(signed):
    values = torch.tensor(dynamic_map(signed))
    middles = ((values[1:].double() + values[:-1].double()) / 2).float()
    up, down = middles.new_tensor(2.0), middles.new_tensor(-2.0)
    beside = [middles, torch.nextafter(middles, up), torch.nextafter(middles, down)]
    # The 1 in front is each block's largest number, so that nothing is divided.
    x = torch.stack([torch.cat([torch.ones(1), row]) for row in (*beside, values[:-1])])
    assert torch.equal(quantize(x, signed)[0], quantize_reference(x, signed)[0])
    assert quantize(x, signed)[0][3, 1:].tolist() == list(range(255))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_bitsandbytes(bitsandbytes, signed):
    x = blocks(32, 0)
    numbers = x if signed else x.square()
    codes, scale = quantize(numbers, signed)
    # Given float64 it compares a number with every value; its float32 kernel for CPUs looks the
    # code up in a table that is too coarse near zero.
    table = bitsandbytes.functional.create_dynamic_map(signed)
    theirs, largest = torch.ops.bitsandbytes.quantize_blockwise(
        numbers.view(-1).double(), table, BLOCK
    )
    assert torch.allclose(scale.view(-1), largest)
    apart = codes.view(-1).int() - theirs.int()
    # It multiplies by the inverse of the scale, which moves a number at a boundary.
    assert apart.abs().max() <= 1
    assert (apart != 0).float().mean() < 0.001


@pytest.mark.parametrize("signed", [True, False])
def test_a_code_stands_for_itself_and_a_block_for_no_other(signed):
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    scale = torch.tensor([[1.0], [1e-30], [3e8]])
    again, same = quantize(dequantize(codes, scale, signed), signed)
    assert torch.equal(again, codes)
    assert torch.allclose(same, scale, rtol=1e-6)
    numbers = torch.zeros(2, BLOCK)
    numbers[1, 0] = 1e30
    assert not dequantize(*quantize(numbers, signed), signed)[0].any()


def reference_step(weight, state, step, rate, decay):
    """PyTorch's plain AdamW in between reading the codes and rounding to them again."""
    shape, numbers = weight.shape, weight.numel()
    moments = []
    for codes, scale, signed in (*state[:1], *state[1:]):
        values = torch.tensor(dynamic_map(signed))[codes.long()] * scale
        moments.append(values.view(-1)[:numbers].view(shape).clone())
    plain = torch.optim.AdamW(
        [weight], lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, foreach=False
    )
    plain.state[weight] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": moments[0],
        "exp_avg_sq": moments[1],
    }
    plain.step()
    filled = -(-numbers // BLOCK) * BLOCK
    return [
        (
            *quantize_reference(
                torch.cat([m.view(-1), m.new_zeros(filled - numbers)]).view(-1, BLOCK), signed
            ),
            signed,
        )
        for m, signed in zip(moments, (True, False), strict=True)
    ]


@pytest.mark.parametrize("shape", [(64, 80), (70, 61), (6, 10, 71)])
def test_a_step_is_adamws_between_reading_and_rounding(shape):
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(shape, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    optimizer = AdamW8bit({"w": ours}, CONFIG)
    count = -(-ours.numel() // BLOCK)
    state = [
        (torch.full((count, BLOCK), zero), torch.zeros(count, 1), signed)
        for zero, signed in ((127, True), (0, False))
    ]
    for step in range(1, 6):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step(0.01)
        with torch.no_grad():
            state = reference_step(theirs, state, step, 0.01, 0.1)
        assert torch.allclose(ours, theirs, atol=1e-6)
        found = optimizer.state()
        for key, (codes, scale, _) in zip(("exp_avg", "exp_avg_sq"), state, strict=True):
            assert torch.allclose(found[f"adamw_8bit.{key}_scale/w"], scale, rtol=1e-5)
            apart = found[f"adamw_8bit.{key}/w"].int() - codes.int()
            # The order of the products may move a number over a boundary, and not by more.
            assert apart.abs().max() <= 1
            assert (apart != 0).sum() <= 3


def test_weights_follow_those_of_bitsandbytes(bitsandbytes):
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(100, 130, generator=generator)
    ours, theirs = start.clone().requires_grad_(), torch.nn.Parameter(start.clone())
    optimizer = AdamW8bit({"w": ours}, CONFIG)
    oracle = bitsandbytes.optim.AdamW8bit([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(10):
        ours.grad = torch.randn(100, 130, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step(0.01)
        oracle.step()
    apart = (ours - theirs).abs()
    # Codes that fall on either side of a boundary move single weights apart, by parts of a step.
    assert apart.mean() < 1e-5
    assert apart.max() < 0.02
    assert (start - theirs).abs().mean() > 0.01


def test_the_state_takes_two_bytes_a_weight_and_small_weights_keep_float32():
    model = tiny_model(hidden=128)
    optimizer = Optimizer(model, CONFIG, torch.float32)
    state = {k: v for k, v in optimizer.state().items() if not k.startswith("weights/")}
    taken = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert taken <= 2.1 * sum(p.numel() for p in model.parameters())
    for name, weight in optimizer.masters.items():
        small = weight.numel() < SMALLEST
        assert (f"adamw.exp_avg/{name}" in state) == small
        assert (f"adamw_8bit.exp_avg/{name}" in state) != small


def test_no_copy_of_the_state_in_float32_is_ever_made():
    weight = torch.randn(2048, 2048)
    weight.grad = torch.randn(2048, 2048)
    optimizer = AdamW8bit({"w": weight}, CONFIG)
    optimizer.step(0.01)  # the tables are made once
    peak = measure_peak(lambda: optimizer.step(0.01))
    assert peak.bytes < weight.numel() * 4 / 2
    assert peak.held == 0


@pytest.mark.parametrize("size", [BLOCK, 5 * BLOCK])
def test_parts_change_nothing(monkeypatch, size):
    def trained():
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(50, 101, generator=generator)
        optimizer = AdamW8bit({"w": weight}, CONFIG)
        for _ in range(3):
            weight.grad = torch.randn(50, 101, generator=generator)
            optimizer.step(0.01)
        return [weight, *optimizer.state().values()]

    whole = trained()
    monkeypatch.setitem(paged._PART, "cpu", size)
    assert all(torch.equal(a, b) for a, b in zip(whole, trained(), strict=True))


def test_it_learns_as_adamw_does():
    def losses(name):
        model = tiny_model(hidden=64)
        config = TrainConfig(steps=99, optimizer=name, learning_rate=3e-3)
        optimizer = Optimizer(model, config, torch.float32)
        batch = tiny_batches().at(0)
        for step in range(40):
            optimizer.clear_gradients()
            loss = model.packed_loss(TensorBatch.of(batch)) / batch.n_trained
            loss.backward()
            optimizer.clip_gradients()
            optimizer.step(1.0, step)
            yield loss.item()

    plain, rounded = list(losses("adamw")), list(losses("adamw_8bit"))
    assert plain[-1] < 0.5 * plain[0]
    assert plain != rounded
    assert max(abs(a - b) for a, b in itertools.zip_longest(plain, rounded)) < 0.1
