"""How many rows a product must have so that each row's result is the same beside any others.

Libraries choose another order of summing for a few rows than for many: on AVX2, MKL's float32
product gives other last bits for 1, 2, 3, 5, 6, 7, 9, 10 and 11 rows than for all other counts.
Which counts differ is a property of the processor, so it is measured on the model's own layers.
"""

import torch
from torch import nn

from hone.models import LlamaForCausalLM

_SMALL = 32
_LARGER = (33, 47, 64, 100)
_MANY = 160

# At index n: the number of rows to pad n rows to; counts past the end stay as they are.
RowCounts = tuple[int, ...]


@torch.inference_mode()
def safe_row_counts(model: LlamaForCausalLM) -> RowCounts | None:
    """Which counts of rows give the same bits as many rows, for every layer of ``model``.

    Returns:
        For n = 0..32 the least safe count of n or more; None where even large counts differ, so
        that no padding can help.
    """
    layers = [*model.model.layers[0].modules(), model.lm_head]
    safe = set(range(1, _SMALL + 1))
    for layer in layers:
        inputs = getattr(layer, "in_features", None)
        if isinstance(inputs, int):
            differing = _differing(layer, inputs, model.dtype, model.device)
            if not differing.isdisjoint(_LARGER) or _SMALL in differing:
                return None
            safe -= differing
    counts = [0]
    for rows in range(1, _SMALL + 1):
        counts.append(min(count for count in safe if count >= rows))
    return tuple(counts)


def _differing(layer: nn.Module, inputs: int, dtype: torch.dtype, device: torch.device) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    x_NE = torch.randn((_MANY, inputs), generator=generator).to(device, dtype)
    many = layer(x_NE)
    return {n for n in (*range(1, _SMALL + 1), *_LARGER) if not layer(x_NE[:n]).equal(many[:n])}
