import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.kernels import cross_entropy
from hone.kernels.cross_entropy import (
    projected_cross_entropy,
    projected_cross_entropy_reference,
    scored_cross_entropy,
)
from hone.train.memory import measure_peak


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
    monkeypatch.setattr(cross_entropy, "_FEWEST_ROWS", 1)
    torch.manual_seed(3)
    hidden, weight = torch.randn(rows, 9), torch.randn(21, 9)
    fast, slow = both(hidden, weight, torch.randint(0, 21, (rows,)))
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def scored(hidden, weight, labels, bias=None, softcap=None):
    """The same through the form for layers of any kind."""

    def scores(hidden_CE):
        logits = torch.nn.functional.linear(hidden_CE, weight, bias)
        return logits if softcap is None else (logits / softcap).tanh() * softcap

    weights = [weight] if bias is None else [weight, bias]
    return scored_cross_entropy(hidden, labels, scores, weights, len(weight))


@pytest.mark.parametrize("function", [projected_cross_entropy, scored])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_softcap(monkeypatch, function, softcap, biased, dtype):
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", 400)
    monkeypatch.setattr(cross_entropy, "_FEWEST_ROWS", 3)
    torch.manual_seed(6)
    labels = torch.randint(0, 21, (14,))
    inputs = [torch.randn(14, 9).to(dtype), torch.randn(21, 9).to(dtype)]
    inputs += [torch.randn(21).to(dtype)] if biased else []
    results = []
    for each in (function, projected_cross_entropy_reference):
        hidden, weight, *bias = leaves = [x.clone().requires_grad_() for x in inputs]
        loss = each(hidden, weight, labels, *(bias or [None]), softcap)
        results.append((loss, *torch.autograd.grad(loss / 14, leaves)))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        scale = theirs.float().abs().max()
        assert (ours.float() - theirs.float()).abs().max() < tolerance * scale


@pytest.mark.parametrize("function", [projected_cross_entropy, scored])
def test_only_the_gradients_that_are_wanted(function):
    torch.manual_seed(7)
    hidden, weight, bias = torch.randn(5, 4), torch.randn(6, 4), torch.randn(6)
    labels = torch.randint(0, 6, (5,))
    whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    expected = torch.autograd.grad(function(*whole[:2], labels, whole[2]), whole)
    for wanted in range(3):
        leaves = [x.clone() for x in (hidden, weight, bias)]
        leaves[wanted].requires_grad_()
        loss = function(*leaves[:2], labels, leaves[2])
        (gradient,) = torch.autograd.grad(loss, leaves[wanted])
        torch.testing.assert_close(gradient, expected[wanted])
    with torch.no_grad():
        torch.testing.assert_close(
            function(*whole[:2], labels, whole[2]),
            projected_cross_entropy_reference(hidden, weight, labels, bias),
        )


@pytest.mark.parametrize("function", [projected_cross_entropy, scored])
def test_all_logits_never_exist(function):
    rows, vocabulary, size = 2048, 8_000, 8
    hidden, weight = torch.randn(rows, size), torch.randn(vocabulary, size, requires_grad=True)
    labels, bias = torch.randint(0, vocabulary, (rows,)), torch.zeros(vocabulary)
    logits = 4 * rows * vocabulary

    def work(each):
        each(hidden, weight, labels, bias, 30.0).backward()

    assert measure_peak(lambda: work(projected_cross_entropy_reference)).bytes > 2 * logits
    assert measure_peak(lambda: work(function)).bytes < logits / 1.5


def test_scoring_alone_makes_no_gradients():
    hidden, weight = torch.randn(9, 64), torch.randn(5000, 64, requires_grad=True)
    labels = torch.randint(0, 5000, (9,))
    with torch.no_grad():
        peak = measure_peak(lambda: projected_cross_entropy(hidden, weight, labels))
    assert peak.bytes < weight.nbytes


def test_a_second_backward_pass_is_refused():
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = projected_cross_entropy(hidden, torch.randn(6, 4), torch.tensor([1, 2, 3]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


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


@pytest.mark.parametrize("function", [projected_cross_entropy, scored])
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.bfloat16, 1 / 777), (torch.float16, 2.0**16)],
)
def test_what_the_loss_is_multiplied_by_is_not_rounded(function, dtype, factor):
    """Neither a divisor, to the eight bits of bfloat16, nor float16's scale, to infinity."""
    torch.manual_seed(5)
    hidden, weight = torch.randn(40, 16).to(dtype), 0.01 * torch.randn(50, 16).to(dtype)
    labels = torch.randint(0, 50, (40,))
    found = []
    for multiplied in (1.0, factor):
        h = hidden.clone().requires_grad_()
        (function(h, weight, labels) * multiplied).backward()
        found.append(h.grad.double())
    plain, scaled = found
    assert float((scaled * plain).sum() / (plain * plain).sum()) == pytest.approx(factor, rel=5e-4)
