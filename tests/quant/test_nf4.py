"""The number format, equal to bitsandbytes bit by bit, and the products with its weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hone.quant import nf4
from hone.quant.nf4 import (
    block_absmax,
    dynamic_map,
    nf4_backward,
    nf4_dequantize,
    nf4_dequantize_reference,
    nf4_forward,
    nf4_linear,
    nf4_quantize,
    nf4_quantize_reference,
    quantize_blocks,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Whole blocks in rows, blocks across rows, short last blocks, an odd number of weights, one weight.
SHAPES = [(6, 128), (64, 64), (20, 96), (9, 63), (300, 258), (7, 13), (1, 1), (1, 65)]


def draw(shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def parts(state):
    return [state.codes.flatten(), state.absmax.flatten(), *(state.nested or ())]


def theirs(weight, double):
    """What bitsandbytes makes of a weight: its tensors in the order of ours, and what it needs."""
    functions = pytest.importorskip("bitsandbytes.functional")
    codes, state = functions.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    found = [codes.flatten(), state.absmax]
    if double:
        found += [state.state2.absmax, state.state2.code, state.offset]
    return found, (codes, state)


def equal(ours, other):
    return len(ours) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, other, strict=True)
    )


def test_the_levels_are_those_of_bitsandbytes():
    functions = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(torch.tensor(nf4.LEVELS), functions.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_map(), functions.create_dynamic_map())


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_constants_are_those_of_bitsandbytes(shape, dtype, double):
    weight = draw(shape, dtype)
    expected, (codes, state) = theirs(weight, double)
    found = nf4_quantize(weight, double)
    assert equal(parts(found), expected)
    assert equal(parts(nf4_quantize_reference(weight, double)), expected)
    if shape[1] % 2 == 0:  # otherwise theirs compiles for seconds, to the same effect
        import bitsandbytes.functional

        original = bitsandbytes.functional.dequantize_4bit(codes, state)
        assert torch.equal(nf4_dequantize(found, dtype), original)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 200),
    seed=st.integers(0, 999),
    exponent=st.integers(-45, 37),
    zeros=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_every_weight_is_quantized_as_by_bitsandbytes(rows, inputs, seed, exponent, zeros, dtype):
    weight = draw((rows, inputs), dtype, seed, 10.0**exponent).nan_to_num(1.0, 1.0, -1.0)
    if zeros:
        weight.view(-1)[: 64 * (seed % 3)] = 0.0
    found = nf4_quantize(weight)
    assert equal(parts(found), theirs(weight, double=True)[0])
    assert equal(parts(nf4_quantize(weight, double=False)), theirs(weight, double=False)[0])
    reference = nf4_dequantize_reference(found, dtype)
    assert torch.equal(nf4_dequantize(found, dtype), reference)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30])
def test_magnitudes_are_quantized_as_by_bitsandbytes(scale):
    # Enough numbers for those that its grid sends to another level than the nearest.
    functions = pytest.importorskip("bitsandbytes.functional")
    values = draw((300_007,), scale=scale)
    codes, state = functions.quantize_blockwise(values, blocksize=256)
    assert equal(quantize_blocks(values, 256), (codes, state.absmax))


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_form_equals_its_reference(shape):
    weight = draw(shape)
    found = nf4_quantize(weight)
    assert equal(parts(found), parts(nf4_quantize_reference(weight)))
    reference = nf4_dequantize_reference(found, torch.float32)
    assert torch.equal(nf4_dequantize(found, torch.float32), reference)


def test_blocks_of_zeros_stay_zero():
    weight = torch.zeros(4, 128)
    assert not nf4_dequantize(nf4_quantize(weight, double=False), torch.float32).any()
    weight[2:] = 1.0
    found = nf4_dequantize(nf4_quantize(weight), torch.float32)
    assert torch.equal(found, weight)


@settings(max_examples=30)
@given(rows=st.integers(1, 20), inputs=st.integers(1, 200), seed=st.integers(0, 99))
def test_no_weight_is_off_by_more_than_half_a_gap(rows, inputs, seed):
    weight = draw((rows, inputs), seed=seed)
    state = nf4_quantize(weight, double=False)
    largest = block_absmax(state).flatten().repeat_interleave(64)[: weight.numel()]
    error = (nf4_dequantize(state, torch.float32) - weight).abs().flatten()
    gap = max(b - a for a, b in zip(nf4.LEVELS, nf4.LEVELS[1:], strict=False))
    assert (error <= largest * gap * 0.50001).all()


def test_what_was_dequantized_is_quantized_to_itself():
    state = nf4_quantize(draw((30, 192)), double=False)
    again = nf4_quantize(nf4_dequantize(state, torch.float32), double=False)
    assert equal(parts(state), parts(again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [64, 1000, 2**20])
@pytest.mark.parametrize("shape", [(48, 192), (33, 128), (7, 65), (5, 50)])
def test_products_and_gradients_equal_those_of_the_dequantized_weight(
    shape, at_once, dtype, monkeypatch
):
    monkeypatch.setattr(nf4, "_CPU_AT_ONCE", at_once)
    state = nf4_quantize(draw(shape))
    weight = nf4_dequantize_reference(state, dtype)
    x, bias = draw((2, 11, shape[1]), dtype, 1).requires_grad_(), draw(shape[:1], dtype, 2)
    grad = draw((2, 11, shape[0]), dtype, 3)
    expected = functional.linear(x, weight, bias)
    found = nf4_linear(x, state, bias)
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(found, expected, **near)
    ours, wanted = (torch.autograd.grad(y, x, grad)[0] for y in (found, expected))
    torch.testing.assert_close(ours, wanted, **near)
    flat = x.detach().flatten(0, 1)
    assert torch.equal(nf4_forward(flat, state, bias), found.detach().flatten(0, 1))
    assert torch.equal(nf4_backward(grad.flatten(0, 1), state), ours.flatten(0, 1))


def test_the_product_keeps_neither_activations_nor_weights():
    state = nf4_quantize(draw((64, 128)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        nf4_linear(draw((5, 128)).requires_grad_(), state).sum().backward()
    assert not any(tensor.numel() >= 5 * 64 for tensor in kept)


def test_no_rows_give_no_rows():
    state = nf4_quantize(draw((64, 128)))
    x = torch.zeros(0, 128, requires_grad=True)
    y = nf4_linear(x, state, torch.zeros(64))
    assert y.shape == (0, 64)
    y.sum().backward()
    assert x.grad.shape == (0, 128)
