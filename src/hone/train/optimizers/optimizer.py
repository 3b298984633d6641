"""The optimizer of a run: float32 masters, the rules that update them, and their mean.

Trained are the weights that require a gradient. In a float32 run they are their own masters. In a
run of 16 bits the model computes with rounded copies: the masters take the gradients of each
micro-batch, and are rounded into the model after a step. An adapter's weights are float32 in every
run, and so their own masters: its layers round them for a product, but not DoRA's magnitudes, which
rounded would change the model before the first step.

Frozen weights are kept once, in the dtype that the run computes in, and have no gradient and no
state. Buffers, such as the codes and scales of quantized layers, stay as they are.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hone.adapters.layers import LoraEmbedding, LoraLinear, TokenRows
from hone.core.errors import ConfigError
from hone.train.config import TrainConfig
from hone.train.optimizers.adafactor import Adafactor
from hone.train.optimizers.adamw import AdamW
from hone.train.optimizers.adamw_8bit import SMALLEST, AdamW8bit
from hone.train.optimizers.muon import Muon, hidden_matrices
from hone.train.optimizers.rules import Rule

_log = logging.getLogger(__name__)


class Optimizer:
    """Everything that a step changes.

    Attributes:
        masters: the trained float32 weights by name; a tied weight stands once.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> None:
        """Convert the weights of ``model`` to ``dtype`` in place, and set up masters and state.

        Raises:
            ConfigError: no weight requires a gradient.
        """
        self._config = config
        self.masters: dict[str, Tensor] = {}
        self._working: list[Tensor] = []
        self._came_as: list[tuple[nn.Parameter, torch.dtype]] = []
        adapters = _of_adapters(model)
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            p.grad = None
            if dtype != torch.float32:
                self._came_as.append((p, p.dtype))
            given, kept = p.detach().contiguous(), torch.float32 if p in adapters else dtype
            p.data = given.to(kept)
            if p.requires_grad:
                master = p if kept == torch.float32 else given.float().requires_grad_()
                master.grad = torch.zeros_like(master)
                self.masters[name] = master
                self._working.append(p)
        if not self.masters:
            raise ConfigError("There is nothing to train: the setting freeze covers every weight.")
        self._weights = list(self.masters.values())
        pairs = zip(self._weights, self._working, strict=True)
        self._rounded = [(master, weight) for master, weight in pairs if master is not weight]
        self._rules = _rules(model, self.masters, config)
        self._averages = [w.detach().clone() for w in self._weights] if config.ema else []

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Set the gradients to zero, keeping their memory."""
        torch._foreach_zero_(self._gradients())

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the model's gradients of one micro-batch to the masters' (they may be the same)."""
        for master, weight in self._rounded:
            if weight.grad is not None:
                assert master.grad is not None
                master.grad.add_(weight.grad)  # 16 bits added to float32
                weight.grad = None

    @torch.no_grad()
    def clip_gradients(self) -> float:
        """Scale the gradients to at most ``grad_clip``; returns their norm before."""
        gradients = self._gradients()
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        limit = self._config.grad_clip
        if limit and limit < norm < float("inf"):
            torch._foreach_mul_(gradients, limit / norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float, step: int) -> None:
        """Update the weights; ``rate`` is the share of the peak rates at ``step`` (from 0)."""
        for peak, rule in self._rules:
            rule.step(rate * peak)
        if self._averages:
            # Early weights are far from the end's: let the mean forget them faster at first.
            decay = min(self._config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, where they are not the same."""
        if self._rounded:
            masters, weights = zip(*self._rounded, strict=True)
            torch._foreach_copy_(weights, masters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the mean of its weights, if there is one, for the time of the block."""
        if not self._averages:
            yield
            return
        with torch.no_grad():
            kept = [w.detach().clone() for w in self._working]
            torch._foreach_copy_(self._working, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._working, kept)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the final weights in the model: their mean, if there is one.

        After a run of 16 bits each weight has the dtype that it came in, so that the model runs as
        before: trained in float32, it ends with its masters. After a float32 run all are float32.
        """
        final = self._averages or self._weights
        for weight, value in zip(self._working, final, strict=True):
            weight.grad = None
            weight.data = value.detach()
        for parameter, dtype in self._came_as:
            parameter.data = parameter.data.to(dtype)

    def state(self) -> dict[str, Tensor]:
        """All tensors that a step reads and changes, by a unique name; views, not copies."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.masters.items()}
        for _, rule in self._rules:
            tensors |= rule.state()
        averages = zip(self.masters, self._averages, strict=False)
        return tensors | {f"mean/{name}": mean for name, mean in averages}

    def held(self) -> list[Tensor]:
        """All tensors that stay from step to step: the state, and the masters' gradients."""
        return [*self.state().values(), *self._gradients()]

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; the names and shapes must be the same."""
        for name, target in self.state().items():
            target.copy_(tensors[name])
        self.publish()

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights if weight.grad is not None]


def _of_adapters(model: nn.Module) -> set[nn.Parameter]:
    """The weights of updates; not the layers that they are beside, nor those trained whole."""
    kinds = (LoraLinear, LoraEmbedding, TokenRows)
    stand_ins = [module for module in model.modules() if isinstance(module, kinds)]
    return {weight for module in stand_ins for weight in module.parameters(recurse=False)}


def _rules(
    model: nn.Module, masters: dict[str, Tensor], config: TrainConfig
) -> list[tuple[float, Rule]]:
    """The rules that ``config.optimizer`` names, each with its peak rate and its share of weights.

    The second of two takes what the first is not made for.
    """
    name, rate = config.optimizer, config.learning_rate
    if name == "adafactor":
        return [(rate, Adafactor(masters, config))]
    paged = name.startswith("paged_")
    if paged and next(iter(masters.values())).device.type == "cpu":
        _log.info("On a CPU the state is in the host's memory anyway: %s pages nothing.", name)
    if name in ("adamw", "paged_adamw"):
        return [(rate, AdamW(masters, config, paged))]
    if name == "muon":
        first = hidden_matrices(model) & masters.keys()
    else:
        first = {key for key, weight in masters.items() if weight.numel() >= SMALLEST}
    taken = {key: weight for key, weight in masters.items() if key in first}
    rest = {key: weight for key, weight in masters.items() if key not in first}
    adamw = (rate, AdamW(rest, config, paged))
    if name == "muon":
        return [(config.muon_learning_rate, Muon(taken, config)), adamw]
    return [(rate, AdamW8bit(taken, config, paged)), adamw]
