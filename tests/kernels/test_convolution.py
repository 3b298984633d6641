from itertools import pairwise

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


def outcome(function, arguments):
    """Outputs, states and the gradients of all tensors."""
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, state = function(*leaves)
    pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    # The last term has no gradient: an empty reference depends on nothing.
    loss = (y * pull).sum() + state.square().sum() + 0 * sum(leaf.sum() for leaf in wanted)
    return y, state, *torch.autograd.grad(loss, wanted)


def agree(fast, slow, tolerance):
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.smoke
@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 30, 1 << 18]),
)
def test_equal_to_a_convolution_of_every_sequence_alone(lengths, taps, bias, state, block):
    arguments = case(lengths, taps=taps, bias=bias, state=state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_BLOCK", block)
        fast = outcome(causal_convolution, arguments)
    agree(fast, outcome(causal_convolution_reference, arguments), 1e-10)


@pytest.mark.parametrize("state", [False, True])
def test_one_token_of_many_sequences(state):
    arguments = case([1] * 9, state=state)
    fast, slow = causal_convolution, causal_convolution_reference
    agree(outcome(fast, arguments), outcome(slow, arguments), 1e-10)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_sequence_in_pieces_has_the_bits_of_the_whole(pieces):
    x, weight, bias, bounds, state = case([sum(pieces)], dtype=torch.float32)
    whole, last = causal_convolution(x, weight, bias, bounds, state)
    outputs = []
    for piece in x.split(pieces):
        y, state = causal_convolution(piece, weight, bias, [0, len(piece)], state)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs), whole)
    assert torch.equal(state, last)


def test_a_broken_sequence_spoils_no_other():
    x, weight, bias, bounds, state = case([5, 2, 7], dtype=torch.float32)
    clean = outcome(causal_convolution, (x, weight, bias, bounds, state))
    x[5:7], state[1] = float("nan"), float("inf")
    spoilt = outcome(causal_convolution, (x, weight, bias, bounds, state))
    for sequence, (start, end) in enumerate(pairwise(bounds)):
        same = sequence != 1
        assert torch.equal(clean[0][start:end], spoilt[0][start:end]) == same
        assert torch.equal(clean[1][sequence], spoilt[1][sequence]) == same
        if same:
            assert torch.equal(clean[2][start:end], spoilt[2][start:end])


def test_bfloat16_is_summed_in_float32_and_rounded_once():
    for lengths in ([30, 3], [1, 1]):
        arguments = case(lengths, dtype=torch.bfloat16)
        exact, _ = causal_convolution(
            *(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)
        )
        y, state, *gradients = outcome(causal_convolution, arguments)
        assert torch.equal(y, exact.bfloat16())
        assert {t.dtype for t in (state, *gradients)} == {torch.bfloat16}


def test_rows_with_a_gap_between_them_and_frozen_weights():
    x, weight, bias, bounds, state = case([8, 1], dtype=torch.float32)
    wide = torch.full((9, 15), float("nan"))
    wide[:, 5:10] = x
    gapped = wide[:, 5:10].detach().requires_grad_()
    y, _ = causal_convolution(gapped, weight, bias, bounds, state)
    expected = outcome(causal_convolution, (x, weight, bias, bounds, state))
    assert torch.equal(y, expected[0])
    y.sum().backward()
    assert gapped.grad.isfinite().all()
