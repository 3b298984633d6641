"""AdamW with both moments in 8 bits (Dettmers et al. 2022, arxiv.org/abs/2110.02861).

Shapes: P blocks of a weight, S numbers in a block (256); the last block is filled up with zeros.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hone.train.config import TrainConfig
from hone.train.optimizers.blockwise import BLOCK, dequantize, quantize
from hone.train.optimizers.paged import new_state, part_size, settle, visiting
from hone.train.optimizers.rules import decays

# Smaller weights (norms, biases) save nothing and mind the rounding most: they are for AdamW.
SMALLEST = 4096


class Moments(NamedTuple):
    """Adam's two moments as codes uint8 ``[P, S]`` and scales float32 ``[P, 1]``."""

    exp_avg: Tensor
    exp_avg_scale: Tensor
    exp_avg_sq: Tensor
    exp_avg_sq_scale: Tensor

    @classmethod
    def zeros(cls, blocks: int, device: torch.device, paged: bool = False) -> "Moments":
        """Those of ``blocks`` blocks before the first step: a scale of 0 makes every code 0."""
        kinds = ((BLOCK, torch.uint8), (1, torch.float32)) * 2
        return cls(*(new_state((blocks, size), kind, device, paged) for size, kind in kinds))


def adamw_8bit_(
    weight_N: Tensor,
    gradient_N: Tensor,
    moments: Moments,
    config: TrainConfig,
    step: int,
    rate: float,
    decay: float,
) -> None:
    """Step number ``step`` (from 1) in place on ``weight_N`` and ``moments``.

    The moments become float32, take the gradient, move the weights, and are rounded again.
    """
    numbers = len(weight_N)
    filled = functional.pad(gradient_N, (0, -numbers % BLOCK)) if numbers % BLOCK else gradient_N
    gradient_PS = filled.view(-1, BLOCK)
    first_PS = dequantize(moments.exp_avg, moments.exp_avg_scale, signed=True)
    second_PS = dequantize(moments.exp_avg_sq, moments.exp_avg_sq_scale, signed=False)
    first_PS.lerp_(gradient_PS, 1 - config.beta1)
    second_PS.mul_(config.beta2).addcmul_(gradient_PS, gradient_PS, value=1 - config.beta2)
    rounded = (*quantize(first_PS, signed=True), *quantize(second_PS, signed=False))
    for target, values in zip(moments, rounded, strict=True):
        target.copy_(values)
    root_PS = second_PS.sqrt_().div_(math.sqrt(1 - config.beta2**step)).add_(config.epsilon)
    update_N = first_PS.div_(root_PS).view(-1)[:numbers]
    weight_N.mul_(1 - rate * decay).sub_(update_N, alpha=rate / (1 - config.beta1**step))


class AdamW8bit:
    """:func:`adamw_8bit_` for many weights, a few blocks at a time.

    So only those are ever in float32, and only those visit the device if the moments are paged.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], config: TrainConfig, paged: bool = False
    ) -> None:
        self._config = config
        self._weights = dict(weights)
        self._moments = {
            name: Moments.zeros(-(-weight.numel() // BLOCK), weight.device, paged)
            for name, weight in weights.items()
        }
        self._step = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every weight from its ``.grad``."""
        self._step += 1
        step = int(self._step)
        for name, weight in self._weights.items():
            decay = self._config.weight_decay if decays(name, weight) else 0.0
            for weight_N, gradient_N, moments in _parts(weight, self._moments[name]):
                with visiting(moments, weight.device) as guests:
                    adamw_8bit_(
                        weight_N, gradient_N, Moments(*guests), self._config, step, rate, decay
                    )
        for device in {weight.device for weight in self._weights.values()}:
            settle(device)

    def state(self) -> dict[str, Tensor]:
        """The codes and scales of each weight's moments and the number of steps, as views."""
        if not self._weights:
            return {}
        tensors = {"adamw_8bit.step": self._step}
        for name, moments in self._moments.items():
            for key, tensor in moments._asdict().items():
                tensors[f"adamw_8bit.{key}/{name}"] = tensor
        return tensors


def _parts(weight: Tensor, moments: Moments) -> Iterator[tuple[Tensor, Tensor, Moments]]:
    assert weight.grad is not None
    size = part_size(weight.device)
    weights, gradients = weight.view(-1).split(size), weight.grad.view(-1).split(size)
    blocks = (tensor.split(size // BLOCK) for tensor in moments)
    for weight_N, gradient_N, *part in zip(weights, gradients, *blocks, strict=True):
        yield weight_N, gradient_N, Moments(*part)
