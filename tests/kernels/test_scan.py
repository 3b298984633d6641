import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import scan
from hone.kernels.scan import selective_scan, selective_scan_reference
from hone.kernels.scan_dual import state_space_dual, state_space_dual_reference


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).tolist()


def mamba(lengths, channels=6, size=3, skip=True, state=True, dtype=torch.float64):
    torch.manual_seed(sum(lengths) + channels)
    bounds = bounds_of(lengths)
    tokens = bounds[-1]
    return (
        torch.randn(tokens, channels, dtype=dtype),
        torch.rand(tokens, channels, dtype=dtype),
        -3 * torch.rand(channels, size, dtype=dtype),
        torch.randn(tokens, size, dtype=dtype),
        torch.randn(tokens, size, dtype=dtype),
        torch.randn(channels, dtype=dtype) if skip else None,
        bounds,
        torch.randn(len(lengths), channels, size, dtype=dtype) if state else None,
    )


def mamba2(lengths, groups=2, heads=4, width=3, size=5, skip=True, state=True, dtype=torch.float64):
    torch.manual_seed(sum(lengths) + heads)
    bounds = bounds_of(lengths)
    tokens = bounds[-1]
    return (
        torch.randn(tokens, heads, width, dtype=dtype),
        torch.rand(tokens, heads, dtype=dtype),
        -3 * torch.rand(heads, dtype=dtype),
        torch.randn(tokens, groups, size, dtype=dtype),
        torch.randn(tokens, groups, size, dtype=dtype),
        torch.randn(heads, dtype=dtype) if skip else None,
        bounds,
        torch.randn(len(lengths), heads, width, size, dtype=dtype) if state else None,
    )


def outcome(function, arguments, *more):
    """Outputs, states and all gradients."""
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, state = function(*leaves, *more)
    pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    # The last term has no gradient: an empty reference depends on nothing.
    loss = (y * pull).sum() + state.square().sum() + 0 * sum(leaf.sum() for leaf in wanted)
    return y, state, *torch.autograd.grad(loss, wanted)


def agree(fast, slow, tolerance):
    """Within ``tolerance`` of the largest number of each tensor."""
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        if ours.numel():
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-6)


LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=5)


@pytest.mark.smoke
@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_selective_scan_equals_its_recurrence(lengths, channels, tokens, skip, state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_FEWEST_TOKENS", tokens)
        patch.setattr(scan, "_MOST_TOKENS", tokens)
        patch.setattr(scan, "_BLOCK", tokens * 3 * 2)
        arguments = mamba(lengths, channels, skip=skip, state=state)
        agree(
            outcome(selective_scan, arguments), outcome(selective_scan_reference, arguments), 1e-12
        )


@pytest.mark.smoke
@settings(max_examples=30, deadline=None)
@given(
    LENGTHS,
    st.sampled_from([(1, 1), (1, 4), (2, 4), (3, 3)]),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_state_space_dual_equals_its_recurrence(lengths, heads, chunk, skip, state):
    arguments = mamba2(lengths, *heads, skip=skip, state=state)
    fast = outcome(state_space_dual, arguments, chunk)
    agree(fast, outcome(state_space_dual_reference, arguments), 1e-12)
