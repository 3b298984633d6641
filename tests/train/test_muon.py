import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.train import TrainConfig
from hone.train.optimizers import muon as module
from hone.train.optimizers.muon import (
    Muon,
    muon_reference,
    orthogonalise,
    orthogonalise_reference,
)

SHAPES = [(8, 8), (8, 24), (24, 8), (8, 8), (1, 5), (24, 8), (16, 4)]


@pytest.mark.parametrize("shape", [(32, 32), (32, 80), (80, 32)])
def test_singular_values_come_close_to_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise_reference(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The singular vectors stay: the result is the matrix's own rotation, not any other.
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise_reference(matrix) @ vt.T
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_the_batched_form_equals_the_reference(count, rows, more, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, rows, rows + more, generator=generator)
    expected = torch.stack([orthogonalise_reference(matrix) for matrix in matrices])
    assert torch.allclose(orthogonalise(matrices), expected, atol=2e-4)


def test_a_matrix_of_zeros_stays_zero_and_a_bad_one_spoils_no_other():
    matrices = torch.randn(3, 4, 6)
    matrices[0] = 0
    matrices[1, 2, 3] = float("inf")
    found = orthogonalise(matrices)
    assert (found[0] == 0).all()
    assert not found[1].isfinite().all()
    assert torch.allclose(found[2], orthogonalise_reference(matrices[2]), atol=1e-4)


@pytest.mark.smoke
@pytest.mark.parametrize("together", [2**24, 200, 1])
def test_steps_equal_the_reference_for_all_shapes(monkeypatch, together):
    monkeypatch.setattr(module, "preferred_dtype", lambda device: torch.float32)
    monkeypatch.setattr(module, "_TOGETHER", together)
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    fast = {str(index): weight.clone().requires_grad_() for index, weight in enumerate(start)}
    slow = [weight.clone() for weight in start]
    momenta = [torch.zeros_like(weight) for weight in start]
    muon = Muon(fast, TrainConfig(steps=9, muon_momentum=0.9, weight_decay=0.1))
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for weight, gradient in zip(fast.values(), gradients, strict=True):
            weight.grad = gradient.clone()
        muon.step(0.05)
        for weight, gradient, momentum in zip(slow, gradients, momenta, strict=True):
            muon_reference(weight, gradient, momentum, 0.05, 0.9, 0.1)
    for name, weight in fast.items():
        assert torch.allclose(weight, slow[int(name)], atol=1e-5)
        assert torch.allclose(muon.state()[f"muon.momentum/{name}"], momenta[int(name)], atol=1e-6)


def test_the_state_is_a_view_that_can_be_filled():
    weights = {str(index): torch.zeros(shape) for index, shape in enumerate(SHAPES)}
    muon = Muon(weights, TrainConfig(steps=9))
    for name in weights:
        view = muon.state()[f"muon.momentum/{name}"]
        assert view.shape == weights[name].shape
        view.fill_(float(name))
    for name, view in muon.state().items():
        assert (view == float(name.rpartition("/")[2])).all()
