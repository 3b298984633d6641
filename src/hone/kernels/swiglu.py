"""The gated activation of the feed-forward layer (Shazeer 2020, "GLU Variants", equation 6)."""

from torch import Tensor
from torch.nn import functional


def swiglu_reference(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """``silu(gate) · up``."""
    return functional.silu(gate_NF) * up_NF


def swiglu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """See :func:`swiglu_reference`."""
    return swiglu_reference(gate_NF, up_NF)
