"""One function per operation of a model: a reference in plain PyTorch, faster forms beside it.

Here: arithmetic on tensors, with hand-written gradients where they pay, and the choice of form.
Not here: parameters, modules, files, or anything that knows a model's layout.
"""

from hone.kernels.attention import attention
from hone.kernels.cross_entropy import projected_cross_entropy
from hone.kernels.device import keep_freed_memory, preferred_dtype
from hone.kernels.linear import adjoin, project
from hone.kernels.norm import rms_norm
from hone.kernels.packed import PackedLayout, packed_attention
from hone.kernels.rotary import apply_rotary, rotary_table
from hone.kernels.swiglu import swiglu

__all__ = [
    "PackedLayout",
    "adjoin",
    "apply_rotary",
    "attention",
    "keep_freed_memory",
    "packed_attention",
    "preferred_dtype",
    "project",
    "projected_cross_entropy",
    "rms_norm",
    "rotary_table",
    "swiglu",
]
