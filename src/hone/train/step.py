"""One optimizer step.

The loss is the mean over what the whole step trains, counted before the forward pass: over all
parts of the batch and all processes, so that neither number changes the gradients. What is not
finite changes no weight, and since loss and gradients are summed first, all processes see it alike.
"""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hone.core.errors import HoneError
from hone.core.files import atomic_path
from hone.core.seeds import derive_seed
from hone.data import Batch
from hone.parallel import Processes
from hone.train.batches import TensorBatch
from hone.train.config import TrainConfig
from hone.train.objectives import Objective
from hone.train.optimizers import Optimizer
from hone.train.resume import Counters
from hone.train.schedules import rate_at

# Loss scaling (Micikevicius et al. 2018, Mixed Precision Training, section 3.2): gradients that
# float16 would round to zero are computed of a multiple of the loss. It is as large as goes.
FIRST_SCALE = 2.0**16
_LEAST_SCALE = 1.0
_STEPS_TO_DOUBLE = 2000


class Stepper:
    """Takes steps, and counts them as what they were."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        config: TrainConfig,
        processes: Processes,
        scaled: bool = False,
    ) -> None:
        """``scaled``: the loss is, by ``Counters.loss_scale``."""
        self._model, self._objective, self._optimizer = model, objective, optimizer
        self._config, self._processes, self._scaled = config, processes, scaled
        self._device = next(model.parameters()).device

    def take(self, batch: Batch, counters: Counters) -> None:
        """Update the weights with the gradients of ``batch``, if there are any and all are finite.

        Raises:
            HoneError: another process has stopped.
        """
        if batch.n_trained == 0:
            counters.skipped_empty += 1
            counters.grad_norm = None
            return
        loss = self._gradients(batch, counters)
        norm = self._optimizer.clip_gradients()
        counters.grad_norm = norm if math.isfinite(norm) else None
        counters.tokens += batch.n_tokens
        counters.trained_tokens += batch.n_trained
        counters.window_tokens += batch.n_tokens
        if math.isfinite(loss) and math.isfinite(norm):
            self._optimizer.step(rate_at(counters.step, self._config), counters.step)
            self._count_good(counters)
            counters.window_loss += loss
            counters.window_trained += batch.n_trained
        # A loss is computed before it is scaled: no other scale makes it finite.
        elif math.isfinite(loss) and counters.loss_scale > _LEAST_SCALE:
            counters.skipped_overflow += 1
            counters.loss_scale = max(counters.loss_scale / 2, _LEAST_SCALE)
            counters.good_in_a_row = 0
        else:
            counters.skipped_bad += 1
            counters.bad_in_a_row += 1
            counters.good_in_a_row = 0

    def _gradients(self, batch: Batch, counters: Counters) -> float:
        """Leave the gradients of the mean loss in the masters; returns the summed loss."""
        rank, count = self._processes.rank, self._processes.count
        # Of the step alone: a run that goes on draws the same, whatever was drawn before.
        torch.manual_seed(derive_seed(self._config.seed, "train", counters.step, rank))
        mine = batch.split(self._config.micro_batches * count)[rank::count]
        self._optimizer.clear_gradients()
        loss = self._objective.backward(
            self._model,
            [TensorBatch.of(part, self._device) for part in mine if part.n_trained],
            batch.n_trained / counters.loss_scale,
            self._optimizer.collect_gradients,
            self._processes,
        )
        # The small sum first: in it a process that is gone is noticed by every backend.
        total = self._processes.total(loss)
        weights = self._optimizer.masters.values()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._processes.sum_(gradients)
        if counters.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1 / counters.loss_scale)
        return total

    def _count_good(self, counters: Counters) -> None:
        counters.bad_in_a_row = 0
        counters.good_in_a_row += 1
        if self._scaled and counters.good_in_a_row == _STEPS_TO_DOUBLE:
            counters.loss_scale *= 2
            counters.good_in_a_row = 0


def stop_after_bad_steps(
    batch: Batch, counters: Counters, config: TrainConfig, out_dir: Path, processes: Processes
) -> None:
    """Stop a run that does not recover, leaving the batch of the step just taken to be looked at.

    Raises:
        HoneError: there were ``max_bad_steps`` steps in a row without finite loss and gradients.
    """
    if counters.bad_in_a_row < config.max_bad_steps:
        return
    path = out_dir / f"bad-batch-{counters.step:08d}.npz"
    if processes.first:
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: x for name, x in values.items() if x is not None})
    raise HoneError(
        f"Training stopped at step {counters.step}: the loss or the gradient was not finite in "
        f"{counters.bad_in_a_row} steps in a row. The last batch is in {path}. Lower the learning "
        f"rate ({config.learning_rate:g}, Muon {config.muon_learning_rate:g}) or lengthen the "
        f"warmup ({config.warmup_steps} steps), and start over with --fresh."
    )
