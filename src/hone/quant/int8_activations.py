"""Int8 weights times int8 activations: each token has a scale, sums are whole numbers.

``x ≈ a · s`` with one scale per token, symmetric and rounded to the nearest (Dettmers et al. 2022,
"LLM.int8()", section 2, vector-wise quantization without the apart treatment of outliers), so that
``x · wᵀ ≈ (a · qᵀ) · s · scale``. The sums of products of codes are exact, so that the bits of a
row depend on no other row, and on no order of summing.

Shapes: M rows of activations, K inputs, N outputs.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hone.core.errors import ConfigError
from hone.models import Model
from hone.quant.int8 import Int8Linear, int8_linear

Int8Activations = bool | Literal["auto"]

# Sums of more products could leave 32 bits.
MOST_INPUTS = (2**31 - 1) // (127 * 127)
# What the product on a GPU takes: rows at least, and multiples of the other sizes.
_GPU_ROWS, _GPU_MULTIPLE = 17, 8
# How often products of so many rows come in what is measured: a prompt of 128 tokens is read, and
# 32 tokens are written, one half of them alone and one half in the company of seven others.
_REQUEST = {128: 1, 1: 16, 8: 2}
_TURNS, _LEAST_GAIN = 3, 0.05


def quantize_tokens(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8; returns codes ``[M, K]`` in -127..127 and float32 scales ``[M, 1]``.

    The error of a number is at most half a scale, which is 1/254 of its row's largest. Rows with a
    number that is not finite have a scale that is none either, so that it shows in what follows.
    """
    x_MK = x_MK.float()
    scale_M1 = x_MK.abs().amax(dim=1, keepdim=True) / 127
    # Divided by as one, rows of zeros and of the smallest of numbers stay zeros.
    divisor_M1 = torch.where(scale_M1 < torch.finfo(torch.float32).tiny, 1.0, scale_M1)
    codes = (x_MK / divisor_M1).round().nan_to_num(0.0).clamp(-127, 127)
    return codes.to(torch.int8), scale_M1


def int8_activations_reference(
    x_MK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """``(a · qᵀ) · s · scale + bias`` as it is written, with sums of int64."""
    codes_MK, scale_M1 = quantize_tokens(x_MK)
    sums_MN = codes_MK.long() @ weight_NK.long().t()
    return _scaled(sums_MN, scale_M1, scale_N1, bias_N).to(x_MK.dtype)


def int8_activations_linear(
    x_MK: Tensor, weight_NK: Tensor, scale_N1: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """See :func:`int8_activations_reference`, which it equals to the last bit."""
    codes_MK, scale_M1 = quantize_tokens(x_MK)
    sums_MN = _product(codes_MK, weight_NK)
    return _scaled(sums_MN, scale_M1, scale_N1, bias_N).to(x_MK.dtype)


def use_int8_activations(model: Model, choice: Int8Activations) -> bool:
    """Let the int8 layers of ``model`` round their activations too, all or none of them.

    Args:
        choice: "auto" for where that is faster here, as a measurement on the model's own shapes
            says: what reading a prompt and writing an answer takes together.

    Returns:
        Whether they do.

    Raises:
        ConfigError: there are no int8 layers, and ``choice`` is True.
    """
    if choice not in (True, False, "auto"):
        raise ConfigError(f"int8_activations is {choice!r}; choose True, False or 'auto'.")
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    for layer in layers:
        layer.product = int8_linear
    fits = [layer for layer in layers if layer.in_features <= MOST_INPUTS]
    if choice is True and not fits:
        raise ConfigError(
            "int8_activations is on, and the model has no int8 weights; write it with "
            "`hone quantize` first, or leave that out."
        )
    used = bool(fits) and (_faster(fits, model.dtype) if choice == "auto" else bool(choice))
    if used:
        for layer in fits:
            layer.product = int8_activations_linear
    return used


def _scaled(sums_MN: Tensor, scale_M1: Tensor, scale_N1: Tensor, bias_N: Tensor | None) -> Tensor:
    """The sums in their unit, float32; each step rounds each number for itself."""
    y_MN = sums_MN.float() * scale_M1 * scale_N1.float().t()
    return y_MN if bias_N is None else y_MN + bias_N.float()


def _product(codes_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """``codes · weightᵀ`` as int32 ``[M, N]``."""
    if codes_MK.device.type != "cuda":
        return torch._int_mm(codes_MK, weight_NK.t())
    rows, outputs = len(codes_MK), len(weight_NK)
    more_rows = max(_GPU_ROWS, rows) - rows
    more_inputs = -codes_MK.shape[1] % _GPU_MULTIPLE
    codes_MK = torch.nn.functional.pad(codes_MK, (0, more_inputs, 0, more_rows))
    if more_inputs or outputs % _GPU_MULTIPLE:
        missing = (0, more_inputs, 0, -outputs % _GPU_MULTIPLE)
        weight_NK = torch.nn.functional.pad(weight_NK, missing)
    return torch._int_mm(codes_MK, weight_NK.t())[:rows, :outputs]


@torch.inference_mode()
def _faster(layers: list[Int8Linear], dtype: torch.dtype) -> bool:
    """Whether all layers together are, over a whole request."""
    shapes: dict[tuple[int, int], list[Int8Linear]] = {}
    for layer in layers:
        shapes.setdefault((layer.in_features, layer.out_features), []).append(layer)
    plain = rounded = 0.0
    for rows, times in _REQUEST.items():
        for alike in shapes.values():
            layer, count = alike[0], times * len(alike)
            x_MK = torch.ones(rows, layer.in_features, dtype=dtype, device=layer.weight.device)
            weights = layer.weight, layer.weight_scale, layer.bias
            plain += count * _seconds(partial(layer, x_MK))
            rounded += count * _seconds(partial(int8_activations_linear, x_MK, *weights))
    return rounded < plain * (1 - _LEAST_GAIN)


def _seconds(work: Callable[[], Tensor]) -> float:
    """The least of some turns after one to warm up."""
    least = float("inf")
    for turn in range(_TURNS + 1):
        start = time.perf_counter()
        result = work()
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        if turn:
            least = min(least, time.perf_counter() - start)
    return least
