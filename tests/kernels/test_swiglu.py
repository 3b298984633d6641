import pytest
import torch

from hone.kernels.swiglu import swiglu, swiglu_reference


@pytest.mark.smoke
@pytest.mark.parametrize("shape", [(1, 2), (5, 6), (2, 3, 34), (257, 64)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_fast_form_equals_the_reference_with_its_gradient(shape, dtype, tolerance):
    torch.manual_seed(1)
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    fast, slow = swiglu(x), swiglu_reference(x)
    pull = torch.randn(slow.shape).to(dtype)
    torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(fast, x, pull)[0],
        torch.autograd.grad(slow, x, pull)[0],
        atol=4 * tolerance,
        rtol=4 * tolerance,
    )
    with torch.no_grad():
        torch.testing.assert_close(swiglu(x), slow, atol=tolerance, rtol=tolerance)


def test_extremes():
    x = torch.tensor([[-200.0, 200.0, float("nan"), float("inf"), 2.0, 3.0, 1.0, -1.0]])
    torch.testing.assert_close(swiglu(x), swiglu_reference(x), equal_nan=True)
    # silu(-200) underflows to zero and silu(200) is 200.
    assert swiglu(x)[0, 0] == 0
    assert swiglu(x)[0, 1] == 600
