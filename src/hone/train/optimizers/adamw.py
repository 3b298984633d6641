"""AdamW: Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hone.train.config import TrainConfig
from hone.train.optimizers.paged import is_visitor, new_state, part_size, settle, visiting
from hone.train.optimizers.rules import decays


class AdamW:
    """PyTorch's fused kernel over weights whose two moments are float32.

    With ``paged``, the moments of a few weights at a time visit the device.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], config: TrainConfig, paged: bool = False
    ) -> None:
        self._config = config
        self._weights = [
            _Weight(
                name,
                weight,
                new_state(weight.shape, torch.float32, weight.device, paged),
                new_state(weight.shape, torch.float32, weight.device, paged),
                config.weight_decay if decays(name, weight) else 0.0,
            )
            for name, weight in weights.items()
        ]
        self._step = torch.zeros(())
        if weights:
            self._step = self._step.to(self._weights[0].weight.device)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every weight from its ``.grad``."""
        for decay in {w.decay for w in self._weights}:
            for parts in _visits([w for w in self._weights if w.decay == decay]):
                self._update(parts, rate, decay)
        self._step += 1
        settle(self._step.device)

    def state(self) -> dict[str, Tensor]:
        """The moments of each weight and the number of steps, as views."""
        if not self._weights:
            return {}
        tensors = {"adamw.step": self._step}
        for w in self._weights:
            tensors[f"adamw.exp_avg/{w.name}"] = w.exp_avg
            tensors[f"adamw.exp_avg_sq/{w.name}"] = w.exp_avg_sq
        return tensors

    def _update(self, parts: "list[_Part]", rate: float, decay: float) -> None:
        config, device = self._config, self._step.device
        firsts, seconds = [p.exp_avg for p in parts], [p.exp_avg_sq for p in parts]
        with visiting([*firsts, *seconds], device) as moments:
            adamw(
                [p.weight for p in parts],
                [p.gradient for p in parts],
                moments[: len(parts)],
                moments[len(parts) :],
                [],
                list(self._step.repeat(len(parts)).unbind()),  # which the kernel counts up
                fused=True,
                amsgrad=False,
                beta1=config.beta1,
                beta2=config.beta2,
                lr=rate,
                weight_decay=decay,
                eps=config.epsilon,
                maximize=False,
            )


class _Weight(NamedTuple):
    name: str
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    decay: float


class _Part(NamedTuple):
    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def _visits(weights: list[_Weight]) -> Iterator[list[_Part]]:
    """What to update together: everything that stays on the device, then visitors by parts."""
    at_home: list[_Part] = []
    for w in weights:
        assert w.weight.grad is not None
        whole = _Part(w.weight, w.weight.grad, w.exp_avg, w.exp_avg_sq)
        if not is_visitor(w.exp_avg, w.weight.device):
            at_home.append(whole)
            continue
        cuts = (tensor.view(-1).split(part_size(w.weight.device)) for tensor in whole)
        yield from ([_Part(*cut)] for cut in zip(*cuts, strict=True))
    if at_home:
        yield at_home
