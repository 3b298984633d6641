import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import cross_entropy
from hone.kernels.cross_entropy import (
    projected_cross_entropy,
    projected_cross_entropy_reference,
)


def both(hidden, weight, labels):
    for function in (projected_cross_entropy, projected_cross_entropy_reference):
        h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        loss = function(h, w, labels)
        yield loss, *torch.autograd.grad(loss / max(1, len(labels)), (h, w))


@pytest.mark.smoke
@pytest.mark.parametrize("chunk_bytes", [1, 400, 8 << 20])
@pytest.mark.parametrize("rows", [1, 13])
def test_chunks_of_any_size_give_the_loss_and_gradients_of_the_reference(
    monkeypatch, chunk_bytes, rows
):
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(3)
    hidden, weight = torch.randn(rows, 9), torch.randn(21, 9)
    fast, slow = both(hidden, weight, torch.randint(0, 21, (rows,)))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_bfloat16_within_its_precision():
    torch.manual_seed(4)
    hidden, weight = torch.randn(40, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    fast, slow = both(hidden, weight, torch.randint(0, 50, (40,)))
    assert fast[0].dtype == torch.float32
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == theirs.dtype
        scale = theirs.float().abs().max()
        assert (ours.float() - theirs.float()).abs().max() < 2e-2 * scale


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e4, 1e4), st.integers(0, 4))
def test_a_label_of_vanishing_probability_keeps_its_finite_loss(shift, label):
    hidden = torch.tensor([[1.0, shift]])
    weight = torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [0.0, 0.0], [-3.0, 1.0]])
    fast, slow = both(hidden, weight, torch.tensor([label]))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_nothing_to_score_is_zero():
    loss, *gradients = next(
        both(torch.zeros(0, 4), torch.randn(6, 4), torch.zeros(0, dtype=torch.int64))
    )
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_nan_is_not_hidden():
    hidden = torch.full((1, 4), float("nan"))
    assert projected_cross_entropy(hidden, torch.randn(6, 4), torch.tensor([2])).isnan()
