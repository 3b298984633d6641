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
from hone.models import LlamaForCausalLM
from hone.models.llama import Block

_SMALL = 16
_LARGER = (17, 31, 40, 64)

# At index n: the number of rows to pad n rows to; counts past the end stay as they are.
RowCounts = tuple[int, ...]


@torch.inference_mode()
def safe_row_counts(model: LlamaForCausalLM) -> RowCounts | None:
    """Which counts of rows give the same bits as many rows, in every product of ``model``.

    Returns:
        For n = 0..16 the least safe count of n or more; None where even large counts differ, so
        that no padding can help.
    """
    block, config = model.model.layers[0], model.config
    assert isinstance(block, Block)
    attention, mlp = block.self_attn, block.mlp
    products = (
        (config.hidden_size, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (config.num_attention_heads * config.head_dim, (attention.o_proj,)),
        (config.hidden_size, (mlp.gate_proj, mlp.up_proj)),
        (config.intermediate_size, (mlp.down_proj,)),
        (config.hidden_size, (model.lm_head,)),
    )
    safe = set(range(1, _SMALL + 1))
    for inputs, layers in products:
        generator = torch.Generator().manual_seed(0)
        x_NE = torch.randn((_LARGER[-1], inputs), generator=generator)
        differing = _differing(layers, x_NE.to(model.device, model.dtype))
        if not differing.isdisjoint({_SMALL, *_LARGER}):
            return None
        safe -= differing
    least = [min(count for count in safe if count >= rows) for rows in range(1, _SMALL + 1)]
    return (0, *least)


def _differing(layers: Sequence[nn.Module], x_NE: Tensor) -> set[int]:
    many = project(x_NE, layers)
    counts = (*range(1, _SMALL + 1), *_LARGER)
    return {rows for rows in counts if not project(x_NE[:rows], layers).equal(many[:rows])}
