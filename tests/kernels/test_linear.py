import pytest
import torch
from torch import nn

from hone.kernels.linear import adjoin, joined, project, project_reference


def linears(sizes, inputs=10, bias=False):
    torch.manual_seed(2)
    return [nn.Linear(inputs, size, bias=bias) for size in sizes]


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [(4,), (6, 2, 2), (8, 8)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_one_product_equals_the_modules_with_gradients(sizes, bias, together):
    modules = linears(sizes, bias=bias)
    if together:
        adjoin(modules)
    x = torch.randn(5, 10, requires_grad=True)
    weights = [p for module in modules for p in module.parameters()]
    fast, slow = project(x, modules), project_reference(x, modules)
    torch.testing.assert_close(fast, slow)
    pull = torch.randn(slow.shape)
    for ours, theirs in zip(
        torch.autograd.grad(fast, [x, *weights], pull),
        torch.autograd.grad(slow, [x, *weights], pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_adjoined_weights_read_as_one_without_a_copy():
    modules = linears((3, 4))
    names = [name for name, _ in modules[0].named_parameters()]
    values = [module.weight.clone() for module in modules]
    assert joined([m.weight for m in modules]).data_ptr() != modules[0].weight.data_ptr()
    adjoin(modules)
    assert joined([m.weight for m in modules]).data_ptr() == modules[0].weight.data_ptr()
    assert [name for name, _ in modules[0].named_parameters()] == names
    for module, value in zip(modules, values, strict=True):
        assert torch.equal(module.weight, value)
    # An optimizer that writes in place is seen through the joined view.
    with torch.no_grad():
        modules[1].weight.add_(1)
    assert torch.equal(joined([m.weight for m in modules])[3:], values[1] + 1)


def test_frozen_weights_get_no_gradient():
    modules = linears((3, 4))
    for module in modules:
        module.requires_grad_(False)
    x = torch.randn(2, 10, requires_grad=True)
    project(x, modules).sum().backward()
    assert x.grad is not None
    assert all(module.weight.grad is None for module in modules)


def test_a_layer_that_took_the_place_of_a_linear_is_called():
    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    modules = linears((3, 4))
    x = torch.randn(2, 10)
    plain = project(x, modules)
    mixed = project(x, [modules[0], Doubled(modules[1])])
    torch.testing.assert_close(mixed[:, :3], plain[:, :3])
    torch.testing.assert_close(mixed[:, 3:], 2 * plain[:, 3:])


@pytest.mark.parametrize("trained", [0, 1])
def test_one_of_several_weights_may_be_frozen(trained):
    modules = linears((3, 4))
    modules[1 - trained].requires_grad_(False)
    x = torch.randn(2, 10)
    project(x, modules).sum().backward()
    expected = x.sum(0).expand_as(modules[trained].weight)
    torch.testing.assert_close(modules[trained].weight.grad, expected)
    assert modules[1 - trained].weight.grad is None
