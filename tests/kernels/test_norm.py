import pytest
import torch

from hone.kernels.norm import rms_norm, rms_norm_reference

SHAPES = [(1, 1), (3, 7), (2, 5, 16), (130, 33)]


def gradients(function, x, weight, pull):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight, 1e-5)
    return out, *torch.autograd.grad(out, (x, weight), pull)


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_fast_form_equals_the_reference_with_its_gradients(shape, dtype, tolerance):
    torch.manual_seed(0)
    x, pull = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = (torch.rand(shape[-1]) + 0.5).to(dtype)
    for fast, slow in zip(
        gradients(rms_norm, x, weight, pull),
        gradients(rms_norm_reference, x, weight, pull),
        strict=True,
    ):
        assert fast.dtype == slow.dtype
        scale = slow.float().abs().max().clamp_min(1)
        torch.testing.assert_close(
            fast.float() / scale, slow.float() / scale, atol=tolerance, rtol=tolerance
        )


def test_rows_with_a_stride_between_them():
    wide = torch.randn(6, 20)
    x, weight = wide[:, 3:11], torch.rand(8)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6))
    ours, theirs = (
        gradients(f, x, weight, torch.ones(6, 8)) for f in (rms_norm, rms_norm_reference)
    )
    for fast, slow in zip(ours, theirs, strict=True):
        torch.testing.assert_close(fast, slow)


def test_non_finite_rows_spoil_themselves_only():
    x = torch.randn(4, 8)
    x[1, 2], x[2, 0], x[3] = float("nan"), float("inf"), 0.0
    weight = torch.ones(8)
    out = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(out, rms_norm_reference(x, weight, 1e-6), equal_nan=True)
    assert out[0].isfinite().all()
    assert (out[3] == 0).all()
