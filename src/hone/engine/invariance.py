"""How many rows a product must have so that each row's result is the same beside any others.

Libraries choose another order of summing for a few rows than for many: on AVX2 with two threads,
MKL's float32 product gives other last bits for 1, 2, 3, 5, 6, 7, 9, 10 and 11 rows than for all
other counts. Which counts differ is a property of the processor, so it is measured on the model's
own layers.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from hone.kernels import project
from hone.kernels.linear import RowCounts, pad_rows
from hone.models import Model
from hone.models.blocks import ExpertLayer

__all__ = ["RowCounts", "pad_experts", "pad_rows", "safe_row_counts"]

_SMALL = 16
_LARGER = (17, 31, 40, 64)

# PyTorch computes functions such as exp for so many float32 numbers at a time, and those at the end
# of a tensor that do not fill up one by one, with other last bits.
_VECTORS = 16


@torch.inference_mode()
def safe_row_counts(model: Model) -> RowCounts | None:
    """Which counts of rows give the same bits as many rows, in every product of ``model``.

    Returns:
        For n = 0..16 the least safe count of n or more; None where even large counts differ, so
        that no padding can help, and where rows are activated that do not fill whole vectors.
    """
    if any(width % _VECTORS for width in _activated(model)):
        return None
    safe = set(range(1, _SMALL + 1))
    for inputs, product in _products(model):
        generator = torch.Generator().manual_seed(0)
        x_NE = torch.randn((_LARGER[-1], inputs), generator=generator)
        differing = _differing(product, x_NE.to(model.device, model.dtype))
        if not differing.isdisjoint({_SMALL, *_LARGER}):
            return None
        safe -= differing
    least = [min(count for count in safe if count >= rows) for rows in range(1, _SMALL + 1)]
    return (0, *least)


def pad_experts(model: nn.Module, row_counts: RowCounts) -> None:
    """Pad the rows of every expert of ``model`` likewise; empty counts pad none."""
    for module in model.modules():
        if isinstance(module, ExpertLayer):
            module.row_counts = row_counts


def _activated(model: Model) -> set[int]:
    """Widths of the rows that go through a function such as exp."""
    return {
        width for module in model.modules() for width in getattr(module, "activated_widths", ())
    }


def _products(model: Model) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """The products of ``model`` and how many inputs they take, each shape once."""
    found: dict[tuple[object, ...], tuple[nn.Module, ...]] = {}
    joint: set[nn.Module] = set()
    weights: dict[torch.Size, Tensor] = {}
    for module in model.modules():
        groups = getattr(module, "joint_products", ())
        joint.update(layer for group in groups for layer in group)
        for group in groups:
            found.setdefault(tuple(str(layer) for layer in group), group)
        if isinstance(module, ExpertLayer):
            for weight in (module.gate_up_proj[0], module.down_proj[0]):
                weights.setdefault(weight.shape, weight)
            if module.shared_expert and type(module.shared_expert_gate) is nn.Linear:
                joint.add(module.shared_expert_gate)  # no product where bits matter
    for module in model.modules():
        if hasattr(module, "in_features") and module not in joint:
            found.setdefault((str(module),), (module,))
    for layers in found.values():
        yield int(layers[0].in_features), partial(project, modules=layers)  # type: ignore[arg-type]
    for weight in weights.values():
        yield weight.shape[1], partial(torch.mm, mat2=weight.t())


def _differing(product: Callable[[Tensor], Tensor], x_NE: Tensor) -> set[int]:
    many = product(x_NE)
    counts = (*range(1, _SMALL + 1), *_LARGER)
    return {rows for rows in counts if not product(x_NE[:rows]).equal(many[:rows])}
