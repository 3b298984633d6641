"""Activations of feed-forward layers by name."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016, section 2)."""
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": functional.relu,
    "tanh": torch.tanh,
}


def gated(gate_up_N2F: Tensor, activation: str) -> Tensor:
    """``activation(gate) · up`` of halves that lie side by side (Shazeer 2020, equation 5)."""
    gate_NF, up_NF = gate_up_N2F.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate_NF) * up_NF
