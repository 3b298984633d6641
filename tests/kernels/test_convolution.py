import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import convolution
from hone.kernels.convolution import causal_convolution, causal_convolution_reference


def case(lengths, channels=5, taps=4, bias=True, state=True, dtype=torch.float64):
    torch.manual_seed(sum(lengths) + channels)
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    x, weight = torch.randn(bounds[-1], channels).to(dtype), torch.randn(channels, taps).to(dtype)
    return (
        x,
        weight,
        torch.randn(channels).to(dtype) if bias else None,
        bounds,
        torch.randn(len(lengths), channels, taps - 1).to(dtype) if state else None,
    )


def both(arguments):
    """Outputs and gradients of the fast form, then of the reference."""
    for function in (causal_convolution, causal_convolution_reference):
        leaves = [
            a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments
        ]
        y, state = function(*leaves)
        pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # The last term has no gradient: an empty reference depends on nothing.
        loss = (y * pull).sum() + state.square().sum() + 0 * sum(leaf.sum() for leaf in wanted)
        yield y, state, *torch.autograd.grad(loss, wanted)


def agree(fast, slow, tolerance=1e-10):
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.smoke
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 30, 1 << 18]),
)
def test_equal_to_a_convolution_of_every_sequence_alone(lengths, taps, bias, state, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_BLOCK", block)
        agree(*both(case(lengths, taps=taps, bias=bias, state=state)))
