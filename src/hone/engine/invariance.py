"""How many rows a product must have so that each row's result is the same beside any others.

Libraries choose another order of summing for a few rows than for many: on AVX2 with two threads,
MKL's float32 product gives other last bits for 1, 2, 3, 5, 6, 7, 9, 10 and 11 rows than for all
other counts. Which counts differ is a property of the processor, so it is measured on the model's
own layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hone.kernels import project
from hone.models import Model

_SMALL = 16
_LARGER = (17, 31, 40, 64)

# PyTorch computes functions such as exp for so many float32 numbers at a time, and those at the end
# of a tensor that do not fill up one by one, with other last bits.
_VECTORS = 16

# At index n: the number of rows to pad n rows to; counts past the end stay as they are.
RowCounts = tuple[int, ...]


@torch.inference_mode()
def safe_row_counts(model: Model) -> RowCounts | None:
    """Which counts of rows give the same bits as many rows, in every product of ``model``.

    Returns:
        For n = 0..16 the least safe count of n or more; None where even large counts differ, so
        that no padding can help, with experts, and where rows are activated that do not fill
        whole vectors.
    """
    if model.config.experts is not None:
        return None  # how many rows an expert computes is up to the others
    if any(width % _VECTORS for width in _activated(model)):
        return None
    products = _products(model)
    safe = set(range(1, _SMALL + 1))
    for layers in products:
        inputs = int(layers[0].in_features)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        x_NE = torch.randn((_LARGER[-1], inputs), generator=generator)
        differing = _differing(layers, x_NE.to(model.device, model.dtype))
        if not differing.isdisjoint({_SMALL, *_LARGER}):
            return None
        safe -= differing
    least = [min(count for count in safe if count >= rows) for rows in range(1, _SMALL + 1)]
    return (0, *least)


def pad_rows(x_N: Tensor, row_counts: RowCounts) -> Tensor:
    """Append zeros up to the next safe number of rows."""
    rows = x_N.shape[0]
    wanted = row_counts[rows] if rows < len(row_counts) else rows
    if wanted == rows:
        return x_N
    return torch.cat((x_N, x_N.new_zeros(wanted - rows, *x_N.shape[1:])))


def _activated(model: Model) -> set[int]:
    """Widths of the rows that go through a function such as exp."""
    return {
        width for module in model.modules() for width in getattr(module, "activated_widths", ())
    }


def _products(model: Model) -> list[tuple[nn.Module, ...]]:
    """The layers that are computed as one product, each shape once."""
    found: dict[tuple[object, ...], tuple[nn.Module, ...]] = {}
    joint: set[nn.Module] = set()
    for module in model.modules():
        groups = getattr(module, "joint_products", ())
        joint.update(layer for group in groups for layer in group)
        for group in groups:
            found.setdefault(tuple(str(layer) for layer in group), group)
    for module in model.modules():
        if hasattr(module, "in_features") and module not in joint:
            found.setdefault((str(module),), (module,))
    return list(found.values())


def _differing(layers: Sequence[nn.Module], x_NE: Tensor) -> set[int]:
    many = project(x_NE, layers)
    counts = (*range(1, _SMALL + 1), *_LARGER)
    return {rows for rows in counts if not project(x_NE[:rows], layers).equal(many[:rows])}
