"""One function per operation of a model: a reference in plain PyTorch, faster forms beside it.

Here: arithmetic on tensors, with hand-written gradients where they pay, and the choice of form.
Not here: parameters, modules, files, or anything that knows a model's layout.
"""

from hone.kernels.activation import ACTIVATIONS, gated
from hone.kernels.attention import AttentionRule, Bias, attention
from hone.kernels.convolution import causal_convolution
from hone.kernels.cross_entropy import projected_cross_entropy, scored_cross_entropy
from hone.kernels.device import keep_freed_memory, preferred_dtype
from hone.kernels.experts import expert_mix, load_balancing_loss, route, router_z_loss
from hone.kernels.linear import adjoin, project
from hone.kernels.norm import rms_norm
from hone.kernels.packed import (
    PackedLayout,
    packed_attention,
    packed_cross_attention,
    split_heads,
)
from hone.kernels.rotary import apply_rotary, rotary_table
from hone.kernels.scan import selective_scan
from hone.kernels.scan_dual import state_space_dual
from hone.kernels.swiglu import swiglu

__all__ = [
    "ACTIVATIONS",
    "AttentionRule",
    "Bias",
    "PackedLayout",
    "adjoin",
    "apply_rotary",
    "attention",
    "causal_convolution",
    "expert_mix",
    "gated",
    "keep_freed_memory",
    "load_balancing_loss",
    "packed_attention",
    "packed_cross_attention",
    "preferred_dtype",
    "project",
    "projected_cross_entropy",
    "rms_norm",
    "rotary_table",
    "route",
    "router_z_loss",
    "scored_cross_entropy",
    "selective_scan",
    "split_heads",
    "state_space_dual",
    "swiglu",
]
