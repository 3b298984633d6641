import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hone.kernels.linear import adjoin
from hone.kernels.lora import LowRank, lora_product, lora_product_reference, row_norms

INPUTS = 12


class Called(nn.Module):
    """A layer of another number format."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)

    def base_forward(self, x):
        return self.forward(x)

    def base_backward(self, grad):
        return grad @ self.weight


def layers(sizes, bias=False, called=()):
    torch.manual_seed(3)
    bases = [nn.Linear(INPUTS, size, bias=bias).requires_grad_(False) for size in sizes]
    return [Called(base) if i in called else base for i, base in enumerate(bases)]


def factors(rank, outputs, a=None):
    a = torch.randn(rank, INPUTS, requires_grad=True) if a is None else a
    return a, torch.randn(outputs, rank, requires_grad=True)


def side_by_side(x, bases, updates):
    return torch.cat(
        [
            base(x) if update is None else lora_product_reference(x, base, update)
            for base, update in zip(bases, updates, strict=True)
        ],
        dim=-1,
    )


@pytest.mark.smoke
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("called", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("together", [False, True])
def test_equals_the_reference_with_gradients(bias, gained, called, together):
    sizes = (8, 4, 6)
    bases = layers(sizes, bias, called)
    if together:
        adjoin(bases)
    shared, _ = factors(3, 8)
    updates = [
        LowRank(*factors(3, 8, shared), 0.5, gain_F=torch.rand(8, requires_grad=True)),
        None,  # such as keys, which peft leaves alone by default
        LowRank(*factors(3, 6, shared), 2.0),
    ]
    if not gained:
        updates[0] = LowRank(updates[0].a_RE, updates[0].b_FR, 0.5)
    x = torch.randn(2, 5, INPUTS, requires_grad=True)
    wanted = [x, shared, updates[0].b_FR, updates[2].b_FR]
    wanted += [updates[0].gain_F] if gained else []
    fast, slow = lora_product(x, bases, updates), side_by_side(x, bases, updates)
    torch.testing.assert_close(fast, slow)
    pull = torch.randn(slow.shape)
    found, expected = (torch.autograd.grad(y, wanted, pull) for y in (fast, slow))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(lora_product(x, bases, updates), slow.detach())


def test_factors_of_their_own_each():
    bases = layers((4, 4))
    updates = [LowRank(*factors(2, 4), 1.5), LowRank(*factors(5, 4), 0.25)]
    x = torch.randn(7, INPUTS, requires_grad=True)
    wanted = [x, *(t for update in updates for t in (update.a_RE, update.b_FR))]
    fast, slow = lora_product(x, bases, updates), side_by_side(x, bases, updates)
    torch.testing.assert_close(fast, slow)
    pull = torch.randn(slow.shape)
    for ours, theirs in zip(
        torch.autograd.grad(fast, wanted, pull),
        torch.autograd.grad(slow, wanted, pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("called", [(), (0,)])
def test_dropout_hides_the_same_inputs_in_both_directions(called):
    (base,) = layers((6,), called=called)
    a, b = factors(3, 6)
    x = torch.randn(40, INPUTS, requires_grad=True)
    torch.manual_seed(8)
    y = lora_product(x, [base], [LowRank(a, b, 1.0, dropout=0.4)])
    # Which inputs were seen is told by B's columns, one input at a time.
    torch.manual_seed(8)
    kept = torch.empty(40, INPUTS, dtype=torch.bool).bernoulli_(0.6)
    assert 0.5 < kept.float().mean() < 0.7
    seen = x * kept / 0.6
    expected = base(x) + seen @ a.t() @ b.t()
    torch.testing.assert_close(y, expected)
    pull = torch.randn(y.shape)
    found, wanted = (torch.autograd.grad(z, [x, a, b], pull) for z in (y, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_recomputation_in_a_checkpoint_drops_the_same_inputs():
    (base,) = layers((6,))
    a, b = factors(3, 6)
    update = LowRank(a, b, 1.0, dropout=0.5)
    x = torch.randn(9, INPUTS, requires_grad=True)
    results = []
    for again in (False, True):
        torch.manual_seed(4)
        call = lambda x: lora_product(x, [base], [update]).square()  # noqa: E731
        y = checkpoint(call, x, use_reentrant=False) if again else call(x)
        results.append((y, *torch.autograd.grad(y.sum(), [x, a, b])))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_factors_in_float32_beside_a_base_in_bfloat16():
    (base,) = layers((6,))
    base.bfloat16()
    a, b = factors(3, 6)
    x = torch.randn(9, INPUTS).bfloat16().requires_grad_()
    y = lora_product(x, [base], [LowRank(a, b, 0.5)])
    assert y.dtype == torch.bfloat16
    da, db = torch.autograd.grad(y.float().sum(), [a, b])
    assert da.dtype == db.dtype == torch.float32


def test_nothing_is_kept_of_the_outputs_nor_of_the_frozen_weight():
    base = nn.Linear(64, 256, bias=False).requires_grad_(False)
    a, b = torch.randn(4, 64, requires_grad=True), torch.randn(256, 4, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    x = torch.randn(100, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lora_product(x, [base], [LowRank(a, b, 1.0)])
    assert sum(kept) == x.numel() + 100 * 4 + a.numel() + b.numel()


def test_inputs_below_the_first_adapter_get_no_gradient():
    (base,) = layers((6,))
    a, b = factors(3, 6)
    y = lora_product(torch.randn(5, INPUTS), [base], [LowRank(a, b, 1.0)])
    y.sum().backward()
    assert a.grad is not None
    assert base.weight.grad is None


def test_norms_of_rows_without_the_sum():
    torch.manual_seed(1)
    weight, a, b = torch.randn(7, 10), torch.randn(3, 10), torch.randn(7, 3)
    expected = torch.linalg.vector_norm(weight + 0.7 * b @ a, dim=1)
    torch.testing.assert_close(row_norms(weight, a, b, 0.7), expected)
    # A row that the update takes away has no norm, and no NaN either.
    gone = -a[:1] * 0.7
    b = torch.tensor([[1.0, 0.0, 0.0]])
    assert row_norms(gone, a, b, 0.7).item() < 1e-3
