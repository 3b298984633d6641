import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hone.quant import Int8Linear, quantize_rows
from hone.quant.int8 import int8_linear, int8_linear_reference

pytestmark = pytest.mark.smoke


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 40),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_weight_is_off_by_more_than_half_a_step(rows, inputs, exponent, seed, dtype):
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    weight = weight * 2.0**exponent
    codes, scale = quantize_rows(weight, dtype)
    assert codes.dtype == torch.int8
    assert scale.dtype == dtype
    assert scale.shape == (rows, 1)
    assert codes.min() >= -127
    error = (codes.float() * scale.float() - weight).abs()
    assert (error <= scale.float() * 0.5001).all()


def test_a_row_of_zeros_stays_zero_and_codes_come_back():
    weight = torch.tensor([[0.0, 0.0, 0.0], [127.0, -63.0, 1.0]])
    codes, scale = quantize_rows(weight, torch.float32)
    assert codes.tolist() == [[0, 0, 0], [127, -63, 1]]
    assert (codes * scale).equal(weight)


@pytest.mark.parametrize("rows", [1, 3, 12, 13, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(48, 64), (33, 50), (33, 128), (1, 64), (1, 1), (600, 1024)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_equals_its_reference(rows, dtype, outputs, inputs, bias):
    generator = torch.Generator().manual_seed(rows)
    codes, scale = quantize_rows(torch.randn(outputs, inputs, generator=generator), dtype)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    bias_N = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    exact = int8_linear_reference(
        x.double(), codes, scale.double(), None if bias_N is None else bias_N.double()
    )
    found = int8_linear(x, codes, scale, bias_N)
    assert found.dtype == dtype
    # Few rows go through bfloat16 in any case.
    short = dtype == torch.bfloat16 or rows <= 12
    torch.testing.assert_close(
        found.double(), exact, atol=0.02 * inputs**0.5 if short else 1e-4, rtol=2e-2
    )


def test_numbers_that_are_not_finite_stay_so():
    codes, scale = quantize_rows(torch.randn(8, 64), torch.float32)
    x = torch.zeros(2, 64)
    x[0, 3] = float("nan")
    for rows in (x, x.repeat(10, 1)):
        out = int8_linear(rows, codes, scale)
        assert out[0].isnan().all()
        assert out[1].isfinite().all()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (12, 5)])
@pytest.mark.parametrize("widen", [True, False])
def test_the_layer_takes_any_leading_dimensions(shape, widen):
    linear = nn.Linear(5, 7)
    layer = Int8Linear(5, 7, bias=True, widen=widen)
    codes, scale = quantize_rows(linear.weight.detach(), torch.float32)
    layer.load_state_dict({"weight": codes, "weight_scale": scale, "bias": linear.bias.detach()})
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), linear(x), atol=0.05, rtol=0.05)
    assert set(layer.state_dict()) == {"weight", "weight_scale", "bias"}


def test_a_layer_that_was_used_in_inference_can_pass_gradients_later():
    layer = Int8Linear(4, 3, bias=False, widen=True)
    codes, scale = quantize_rows(torch.randn(3, 4), torch.float32)
    layer.load_state_dict({"weight": codes, "weight_scale": scale})
    with torch.inference_mode():
        layer(torch.randn(2, 4))
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


def test_loading_other_codes_replaces_the_widened_copy():
    layer = Int8Linear(4, 3, bias=False, widen=True)
    for seed in (1, 2):
        weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        codes, scale = quantize_rows(weight, torch.float32)
        layer.load_state_dict({"weight": codes, "weight_scale": scale})
        torch.testing.assert_close(layer(torch.eye(4)).T, codes * scale)
