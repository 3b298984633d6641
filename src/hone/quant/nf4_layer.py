"""Linear layers with NF4 weights, and models whose linear layers are made so.

Shapes: M rows of activations, K inputs, N outputs.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError
from hone.models import Head, Model, load_config, load_model
from hone.models.weights import four_bit_layers, own_tensors
from hone.quant.nf4 import (
    Nested,
    Nf4State,
    layout,
    nf4_backward,
    nf4_dequantize,
    nf4_forward,
    nf4_linear,
    nf4_quantize,
)

QUANT_METHOD = "bitsandbytes"
# The constants of a weight: float32 in whatever dtype a model computes.
_NESTED = ("weight_nested_absmax", "weight_nested_quant_map", "weight_nested_offset")


class Nf4Linear(nn.Module):
    """A linear layer with a frozen NF4 weight; stands where an ``nn.Linear`` stood.

    State: ``weight`` (codes), ``weight_absmax``, with double quantization
    ``weight_nested_absmax``, ``weight_nested_quant_map`` and ``weight_nested_offset``, as
    :class:`hone.quant.nf4.Nf4State` describes them, and ``bias`` ``[N]`` or None.

    Attributes:
        weight_dtype: of what :meth:`dequantize` returns; follows ``to(dtype)``.
        nested: whether the magnitudes of the blocks are quantized.
    """

    weight: Tensor
    weight_absmax: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        dtype: torch.dtype = torch.float32,
        double: bool = True,
    ) -> None:
        """Allocate on the default device.

        Args:
            dtype: of the bias, and of what :meth:`dequantize` returns.
            double: the magnitudes of the blocks are quantized.
        """
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight_dtype, self.nested = dtype, double
        codes, absmax, nested = layout(outputs, inputs)
        stored = torch.uint8 if double else torch.float32
        self.register_buffer("weight", torch.empty(codes, dtype=torch.uint8))
        self.register_buffer("weight_absmax", torch.empty(absmax, dtype=stored))
        if double:
            self.register_buffer("weight_nested_absmax", torch.empty(nested, dtype=torch.float32))
            self.register_buffer("weight_nested_quant_map", torch.empty(256, dtype=torch.float32))
            self.register_buffer("weight_nested_offset", torch.empty((), dtype=torch.float32))
        self.register_buffer("bias", torch.empty(outputs, dtype=dtype) if bias else None)

    @classmethod
    def of(cls, linear: nn.Linear, double: bool = True) -> Self:
        """The NF4 form of ``linear``, on its device."""
        weight = linear.weight
        with torch.device(weight.device):
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                weight.dtype,
                double,
            )
        layer.fill(weight)
        if layer.bias is not None:
            layer.bias.copy_(linear.bias.detach())
        return layer.train(linear.training)

    @torch.no_grad()
    def fill(self, weight_NK: Tensor) -> None:
        """Take the codes and constants of a float weight.

        Raises:
            CheckpointError: the weight holds NaN or infinity.
        """
        found = nf4_quantize(weight_NK.to(self.weight.device), self.nested)
        check_finite(found)
        own = self.state
        own.codes.copy_(found.codes)
        own.absmax.copy_(found.absmax)
        for mine, value in zip(own.nested or (), found.nested or (), strict=True):
            mine.copy_(value)

    @property
    def state(self) -> Nf4State:
        """Codes and constants, for the functions of ``hone.quant.nf4``."""
        nested = Nested(*(getattr(self, name) for name in _NESTED)) if self.nested else None
        shape = (self.out_features, self.in_features)
        return Nf4State(self.weight, self.weight_absmax, shape, nested)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight that the layer computes with, ``[N, K]``."""
        return nf4_dequantize(self.state, dtype or self.weight_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]`` in the dtype of ``x``; gradients reach ``x`` alone."""
        return nf4_linear(x, self.state, self.bias)

    def base_forward(self, x_MK: Tensor) -> Tensor:
        """:meth:`forward` inside another function's: without a graph."""
        return nf4_forward(x_MK, self.state, self.bias)

    def base_backward(self, grad_MN: Tensor) -> Tensor:
        """The gradient of :meth:`base_forward` by ``x``, ``[M, K]``."""
        return nf4_backward(grad_MN, self.state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        constants = ("weight_absmax", *_NESTED) if self.nested else ("weight_absmax",)
        before = {name: getattr(self, name) for name in constants}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        probe = torch.empty(0, dtype=self.weight_dtype, device=self.weight.device)
        self.weight_dtype = fn(probe).dtype
        return self

    def extra_repr(self) -> str:
        """For people."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def nf4_settings(double: bool = True, skipped: Collection[str] = ()) -> dict[str, Any]:
    """``quantization_config`` of NF4 files, as transformers writes it for bitsandbytes.

    Args:
        skipped: names in the files of the linear layers that stay float.
    """
    return {
        "quant_method": QUANT_METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted(skipped) or None,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }


def check_finite(state: Nf4State) -> None:
    """Refuse a weight with NaN or infinity, which would spread to all blocks.

    Raises:
        CheckpointError: it is one.
    """
    largest = state.absmax if state.nested is None else state.nested.absmax
    if not bool(torch.isfinite(largest).all()):
        raise CheckpointError("NF4 cannot hold a weight with NaN or infinity.")


def quantize_nf4_model(model: Model, double: bool = True, kept: Collection[str] = ()) -> None:
    """Turn the linear layers of ``model`` into :class:`Nf4Linear`, one after another, in place.

    Those of ``hone.models.weights.four_bit_layers``; stacked experts, embeddings, routers and the
    last layer of a head stay as they are. On the meta device, the layers are there to be filled.

    Args:
        double: quantize the magnitudes of the blocks too.
        kept: more layers that stay.

    Raises:
        CheckpointError: a weight holds NaN or infinity.
    """
    for name in [name for name in four_bit_layers(model) if name not in kept]:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        try:
            setattr(owner, child, _nf4(getattr(owner, child), double))
        except CheckpointError as error:
            raise CheckpointError(f"{name!r}: {error}") from error
    model.config = replace(model.config, quantization_config=nf4_settings(double))


def load_nf4(
    directory: str | Path,
    dtype: str | torch.dtype = "auto",
    device: torch.device | str = "cpu",
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    double: bool = True,
) -> Model:
    """Read a float checkpoint into a model with NF4 layers; see ``hone.models.load_model``.

    Each weight is quantized as soon as it is read: the float model never exists. What a checkpoint
    holds in NF4 already is read as it is.

    Args:
        double: quantize the magnitudes of the blocks too.
    """
    stored = load_config(directory, head).quantization_config
    if stored is not None and stored.get("quant_method") == QUANT_METHOD:
        return load_model(directory, dtype, device, head, labels)
    quantize = partial(_quantize_but, double=double)
    return load_model(directory, dtype, device, head, labels, quantize)


def _quantize_but(model: Model, kept: Collection[str], double: bool) -> None:
    quantize_nf4_model(model, double, kept)


def _nf4(linear: nn.Linear, double: bool) -> Nf4Linear:
    if not linear.weight.is_meta:
        return Nf4Linear.of(linear, double)
    with torch.device("meta"):
        bias, dtype = linear.bias is not None, linear.weight.dtype
        return Nf4Linear(linear.in_features, linear.out_features, bias, dtype, double)


class Footprint(NamedTuple):
    """What the weights of a model take.

    Attributes:
        weights: how many are NF4.
        bytes: what they take, constants included.
        kept: how many are not.
        kept_bytes: what those take, biases included.
    """

    weights: int
    bytes: int
    kept: int
    kept_bytes: int


def nf4_footprint(model: Model) -> Footprint:
    """Count the bytes of the tensors of ``model``."""
    weights = size = 0
    inside: set[str] = set()
    for path, layer in model.named_modules():
        if isinstance(layer, Nf4Linear):
            weights += layer.in_features * layer.out_features
            own = {f"{path}.{name}": each for name, each in layer.named_buffers() if name != "bias"}
            size += sum(tensor.nbytes for tensor in own.values())
            inside |= own.keys()
    rest = [tensor for name, tensor in own_tensors(model).items() if name not in inside]
    return Footprint(
        weights, size, sum(each.numel() for each in rest), sum(each.nbytes for each in rest)
    )
