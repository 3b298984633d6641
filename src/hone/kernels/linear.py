"""The seam that every product with a weight goes through.

Shapes: N rows, E inputs, F outputs of all modules together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

# At index n: the number of rows to pad n rows to; counts past the end stay as they are.
RowCounts = tuple[int, ...]


def pad_rows(x_N: Tensor, row_counts: RowCounts) -> Tensor:
    """Append zeros up to the number of rows that ``row_counts`` says."""
    rows = x_N.shape[0]
    wanted = row_counts[rows] if rows < len(row_counts) else rows
    if wanted == rows:
        return x_N
    return torch.cat((x_N, x_N.new_zeros(wanted - rows, *x_N.shape[1:])))


def project_reference(x_NE: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """The modules' outputs side by side: ``cat([module(x) for module in modules], dim=-1)``."""
    return torch.cat([module(x_NE) for module in modules], dim=-1)


def project(x_NE: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """See :func:`project_reference`; plain ``nn.Linear`` modules are computed as one product.

    A layer that took the place of one is called, unless its class knows how to compute several at
    once: ``joint_product(x_NE, modules)``, where others may be among the modules.
    """
    if len(modules) == 1:
        return modules[0](x_NE)
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) < len(modules):
        for module in modules:
            if joint_product := getattr(type(module), "joint_product", None):
                together: Tensor = joint_product(x_NE, modules)
                return together
        return project_reference(x_NE, modules)
    bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
    weights = [linear.weight for linear in linears]
    wanted = x_NE.requires_grad or any(weight.requires_grad for weight in weights)
    if torch.is_grad_enabled() and wanted:
        product: Tensor = _JointProduct.apply(x_NE, *weights)
        return product if bias is None else product + bias
    return functional.linear(x_NE, joined(weights), bias)


def adjoin(modules: Sequence[nn.Module], values: bool = True) -> None:
    """Lay the weights of ``modules`` behind one another in memory, so that they read as one.

    The parameters stay the modules' own, with the same names and, unless ``values`` is False for
    weights that are yet to be filled, the same values. Of an adapted layer it is its ``base``'s.
    """
    bases = [getattr(module, "base", module) for module in modules]
    linears = [module for module in bases if type(module) is nn.Linear]
    if len(linears) < len(modules):
        return
    weights = [linear.weight.detach() for linear in linears]
    if values:
        weight = torch.cat(weights)
    else:
        rows = sum(len(weight) for weight in weights)
        weight = weights[0].new_empty(rows, weights[0].shape[1])
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part


def joined(weights: Sequence[Tensor]) -> Tensor:
    """``torch.cat(weights)`` for use without gradients: a view where they lie adjoined."""
    first = weights[0]
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for weight in weights:
        if (
            weight.data_ptr() != end
            or weight.untyped_storage().data_ptr() != storage
            or not weight.is_contiguous()
            or weight.dtype != first.dtype
        ):
            return torch.cat([weight.detach() for weight in weights])
        end += weight.numel() * weight.element_size()
    rows = sum(weight.shape[0] for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))


class _JointProduct(torch.autograd.Function):
    """``x · cat(weights)ᵀ``; its gradients are two products as well, with nothing copied."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_NE: Tensor, *weights: Tensor) -> Tensor:
        # Only the weights' gradients read the inputs.
        trained = any(ctx.needs_input_grad[1:])  # type: ignore[attr-defined]
        ctx.save_for_backward(x_NE if trained else x_NE.new_empty(0), *weights)
        return functional.linear(x_NE, joined(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_NF: Tensor) -> tuple[Tensor | None, ...]:
        x_NE, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_x, *wanted = ctx.needs_input_grad  # type: ignore[attr-defined]
        dx_NE = grad_NF @ joined(weights) if grad_x else None
        if not any(wanted):
            return dx_NE, *(None for _ in weights)
        rows = [weight.shape[0] for weight in weights]
        dweight_FE = grad_NF.flatten(0, -2).t() @ x_NE.flatten(0, -2)
        return dx_NE, *dweight_FE.split(rows)
