"""The optimizer of a run: float32 masters, AdamW and Muon side by side, and the weights' mean.

In a float32 run the masters are the model's parameters themselves. In a bfloat16 run they are
copies, which take the gradients of each micro-batch and are rounded into the model after a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hone.train.config import TrainConfig
from hone.train.muon import Muon

# Linear layers whose outputs are scores of classes: tokens, labels, experts.
_CLASSES = ("lm_head", "score", "gate", "shared_expert_gate")
# No weights of a product, though some have two dimensions: decay would change how fast a state
# space forgets.
_UNDECAYED = ("A_log", "D")


class Optimizer:
    """Everything that a step changes.

    Attributes:
        masters: the float32 weights by name; a tied weight stands once.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> None:
        """Convert ``model`` to ``dtype`` in place and set up its masters and their state."""
        model.float()
        named = dict(model.named_parameters())
        self.masters: dict[str, Tensor] = dict(named)
        if dtype != torch.float32:
            self.masters = {
                name: p.detach().clone().requires_grad_(p.requires_grad)
                for name, p in named.items()
            }
            model.to(dtype)
        self.masters = {name: p for name, p in self.masters.items() if p.requires_grad}
        self._model = model
        self._weights: list[Tensor] = list(self.masters.values())
        self._working: list[Tensor] = [named[name] for name in self.masters]
        self._copies = dtype != torch.float32
        self._config = config
        for master in self._weights:
            master.grad = torch.zeros_like(master)

        matrices = _hidden_matrices(model) if config.optimizer == "muon" else set()
        self._muon = Muon(
            {name: p for name, p in self.masters.items() if name in matrices},
            config.muon_momentum,
            config.weight_decay,
        )
        rest = {name: p for name, p in self.masters.items() if name not in matrices}
        self._adamw_names = list(rest)
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in rest.items() if _decays(name, p)]},
            {
                "params": [p for name, p in rest.items() if not _decays(name, p)],
                "weight_decay": 0.0,
            },
        ]
        self._adamw = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for p in rest.values():
            # Made here rather than at the first step, so that loading has something to fill.
            self._adamw.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        self._averages = [p.detach().clone() for p in self._weights] if config.ema else []

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Set the gradients to zero, keeping their memory."""
        torch._foreach_zero_(self._gradients())

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the model's gradients of one micro-batch to the masters' (they may be the same)."""
        if not self._copies:
            return
        for master, weight in zip(self._weights, self._working, strict=True):
            if weight.grad is not None:
                assert master.grad is not None
                master.grad.add_(weight.grad)  # bfloat16 added to float32
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
        for group in self._adamw.param_groups:
            group["lr"] = rate * self._config.learning_rate
        self._adamw.step()
        self._muon.step(rate * self._config.muon_learning_rate)
        if self._averages:
            # Early weights are far from the end's: let the mean forget them faster at first.
            decay = min(self._config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, where they are not the same."""
        if self._copies:
            torch._foreach_copy_(self._working, self._weights)

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
        """Leave the model in float32 with the final weights: their mean, if there is one."""
        final = self._averages or [w.detach().clone() for w in self._weights]
        if self._copies:
            self._model.float()
        torch._foreach_copy_(self._working, final)
        for parameter in self._working:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """All tensors that a step reads and changes, by a unique name; views, not copies."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.masters.items()}
        for name in self._adamw_names:
            for key, value in self._adamw.state[self.masters[name]].items():
                tensors[f"adamw.{key}/{name}"] = value
        tensors |= {f"muon.momentum/{name}": m for name, m in self._muon.state().items()}
        tensors |= {
            f"mean/{name}": m for name, m in zip(self.masters, self._averages, strict=False)
        }
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; the names and shapes must be the same."""
        for name, target in self.state().items():
            target.copy_(tensors[name])
        self.publish()

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights if weight.grad is not None]


def _decays(name: str, weight: Tensor) -> bool:
    return weight.ndim >= 2 and name.rpartition(".")[2] not in _UNDECAYED


def _hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the layers' weights between the embedding and the head: what Muon is for.

    Neither a router, whose rows are classes as a head's are, nor what is no product's weight.
    """
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _CLASSES
    }
    return {name for name, p in model.named_parameters() if name in layers and id(p) not in outer}
