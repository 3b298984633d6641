"""The seam that every product with a weight goes through.

Shapes: N rows, E inputs, F outputs of one module.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def project(x_NE: Tensor, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """``tuple(module(x_NE) for module in modules)``, as one product where that can be.

    Plain ``nn.Linear`` modules are computed together; anything else (a quantized or an adapted
    layer that took the place of one) is called.
    """
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(modules) == 1 or len(linears) < len(modules):
        return tuple(module(x_NE) for module in modules)
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
    sizes = [linear.out_features for linear in linears]
    return functional.linear(x_NE, weight, bias).split(sizes, dim=-1)


def adjoin(modules: Sequence[nn.Module]) -> None:
    """Lay the weights of ``modules`` behind one another in memory, so that they read as one.

    The parameters stay the modules' own, with the same names and values.
    """
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) < len(modules):
        return
    weight = torch.cat([linear.weight.detach() for linear in linears])
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part
