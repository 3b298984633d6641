"""Adafactor (Shazeer & Stern 2018, arxiv.org/abs/1804.04235) at a given learning rate.

The second moment of a matrix is kept as the means of its rows and of its columns. There is no first
moment, and the rate is the schedule's: neither relative to the step nor to the weight's size.

Shapes: R rows, C columns of a weight's last two dimensions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hone.train.config import TrainConfig
from hone.train.optimizers.rules import decays

# Named as in the paper: ε₁ of section 6, d of section 6, and the exponent of β̂₂ in section 7.2.
_EPSILON_1 = 1e-30
_CLIP = 1.0
_EXPONENT = -0.8


def adafactor_(
    weight: Tensor, gradient: Tensor, state: list[Tensor], step: int, rate: float, decay: float
) -> None:
    """Step number ``step`` (from 1) in place on ``weight`` and ``state``: algorithms 4 and 5.

    Args:
        state: of a matrix the means of its squared gradients over columns ``[..., R]`` and over
            rows ``[..., C]``; of a vector their mean itself.
    """
    share = step**_EXPONENT  # 1 − β̂₂
    squares = gradient.square().add_(_EPSILON_1)
    if weight.ndim >= 2:
        row_R, column_C = state
        row_R.lerp_(squares.mean(dim=-1), share)
        column_C.lerp_(squares.mean(dim=-2), share)
        # V̂ = R C / mean(R), of which the root is taken before the product: it cannot underflow.
        by_row_R = (row_R / row_R.mean(dim=-1, keepdim=True)).rsqrt_()
        update = squares.copy_(gradient)
        update.mul_(by_row_R.unsqueeze(-1)).mul_(column_C.rsqrt().unsqueeze(-2))
    else:
        (variance,) = state
        update = gradient * variance.lerp_(squares, share).rsqrt()
    root_mean_square = update.norm() / update.numel() ** 0.5
    update.div_((root_mean_square / _CLIP).clamp_min_(1.0))
    weight.mul_(1 - rate * decay).sub_(update, alpha=rate)


class Adafactor:
    """:func:`adafactor_` for many weights."""

    def __init__(self, weights: Mapping[str, Tensor], config: TrainConfig) -> None:
        self._config = config
        self._weights = dict(weights)
        self._moments = {name: _zeros(weight) for name, weight in weights.items()}
        self._step = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every weight from its ``.grad``."""
        self._step += 1
        for name, weight in self._weights.items():
            assert weight.grad is not None
            decay = self._config.weight_decay if decays(name, weight) else 0.0
            state = list(self._moments[name].values())
            adafactor_(weight, weight.grad, state, int(self._step), rate, decay)

    def state(self) -> dict[str, Tensor]:
        """The means of squared gradients of each weight and the number of steps, as views."""
        if not self._weights:
            return {}
        tensors = {"adafactor.step": self._step}
        for name, moments in self._moments.items():
            tensors |= {f"adafactor.{key}/{name}": tensor for key, tensor in moments.items()}
        return tensors


def _zeros(weight: Tensor) -> dict[str, Tensor]:
    if weight.ndim < 2:
        return {"exp_avg_sq": torch.zeros_like(weight)}
    *stack, rows, columns = weight.shape
    return {
        "exp_avg_sq_row": weight.new_zeros(*stack, rows),
        "exp_avg_sq_col": weight.new_zeros(*stack, columns),
    }
