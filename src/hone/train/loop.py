"""The training loop.

A step: take the step's batch, add up the gradients of its micro-batches, clip, update. The loss is
the mean over the trained tokens of the whole step, counted before the forward pass, so the number
of micro-batches changes nothing. Every step is a function of its number and the state before it:
a killed run that goes on from its last checkpoint ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hone.core.errors import HoneError
from hone.core.progress import progress
from hone.core.seeds import derive_seed
from hone.data import Batch
from hone.kernels import keep_freed_memory, preferred_dtype
from hone.train.batches import Batches, TensorBatch
from hone.train.checkpoints import CheckpointStore
from hone.train.config import TrainConfig
from hone.train.interrupt import deferred_interrupt
from hone.train.metrics import MetricsLog
from hone.train.objectives import Objective, SummedLoss
from hone.train.optimizers import Optimizer
from hone.train.resume import (
    Counters,
    check_same,
    identity,
    machine,
    manifest,
    restore,
    snapshot,
    warn_of_changes,
)
from hone.train.schedules import rate_at

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Attributes:
        loss: mean over the trained tokens of the last window of steps; None if none was trained.
        seconds: in every process that worked on the run.
        skipped_empty, skipped_bad: steps without a trained token, and without a finite loss.
        resumed_from: the step that this process began at.
        precision: ``fp32`` or ``bf16``.
    """

    steps: int
    loss: float | None
    tokens: int
    trained_tokens: int
    seconds: float
    skipped_empty: int
    skipped_bad: int
    resumed_from: int
    precision: str


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    objective: Objective | None = None,
    on_step: Callable[[Counters], None] | None = None,
    evaluate: Callable[[nn.Module, int], Mapping[str, Any]] | None = None,
    fresh: bool = False,
    label: str = "Training",
) -> TrainResult:
    """Train ``model`` in place, going on where an earlier run in ``out_dir`` stopped.

    Args:
        model: has ``packed_loss(batch)``, the summed loss of a batch. It must come in with the
            same weights each time; it is left in float32 with the final ones.
        batches: the batch of each step.
        config: the settings.
        out_dir: gets ``metrics.jsonl`` and ``checkpoints/``.
        objective: what the gradients are of; by default :class:`SummedLoss`.
        on_step: called after each step, with counters that are not to be changed.
        evaluate: called with the (averaged) model and the number of steps done, every
            ``evaluate_every`` steps; what it returns becomes a line of ``metrics.jsonl``.
        fresh: forget the earlier run.
        label: for the progress bar.

    Raises:
        ConfigError: the earlier run had other settings, data or weights to start from.
        CapacityError: the disk is full; the last checkpoint is intact.
        CheckpointError: all checkpoints are damaged.
        HoneError: ``max_bad_steps`` steps in a row had no finite loss and gradient.
        KeyboardInterrupt: Ctrl-C was pressed; the step was finished and a checkpoint written.
    """
    out_dir = Path(out_dir)
    store = CheckpointStore(out_dir / "checkpoints", config.keep_last)
    if fresh:
        store.clear()
    checkpoint = store.latest()
    wanted = identity(model, batches.fingerprint, config)
    device = next(model.parameters()).device
    precision = _precision(config, device)
    if checkpoint is not None:
        check_same(checkpoint, wanted)
        warn_of_changes(checkpoint, machine(precision, device))
        precision = checkpoint.manifest["machine"]["precision"]
    where = machine(precision, device)
    optimizer = Optimizer(model, config, _DTYPES[precision])
    if adjoin_weights := getattr(model, "adjoin_weights", None):
        adjoin_weights()  # a conversion of the dtype has taken them apart
    if device.type == "cpu":
        keep_freed_memory()
    model.train()

    with torch.random.fork_rng(devices=_cuda_only(device)):
        torch.manual_seed(derive_seed(config.seed, "train"))
        counters = Counters()
        if checkpoint is not None:
            counters = restore(checkpoint, optimizer, device)
        first, before, begun = counters.step, counters.seconds, time.perf_counter()
        with (
            MetricsLog(out_dir / "metrics.jsonl", counters.metrics_bytes) as metrics,
            progress(label, config.steps, "steps", done=first) as bar,
            deferred_interrupt() as interrupted,
        ):

            def save() -> None:
                counters.seconds = before + time.perf_counter() - begun
                counters.metrics_bytes = metrics.sync()
                tensors = snapshot(optimizer, device)
                store.save(counters.step, tensors, manifest(counters, wanted, where))

            while counters.step < config.steps:
                started = time.perf_counter()
                batch = batches.at(counters.step)
                _step(batch, model, objective or SummedLoss(), optimizer, config, counters, device)
                now = time.perf_counter()
                counters.window_seconds += now - started
                counters.seconds = before + now - begun
                counters.step += 1
                step, last = counters.step, counters.step == config.steps
                if step % config.log_every == 0 or last:
                    _report(metrics, counters, config)
                if evaluate and config.evaluate_every and step % config.evaluate_every == 0:
                    metrics.write({"step": step, **_evaluated(evaluate, model, optimizer, step)})
                if step % config.checkpoint_every == 0 or last or interrupted():
                    save()
                loss = "-" if counters.loss is None else f"{counters.loss:.3f}"
                bar.advance(1, loss=loss, tokens=f"{counters.tokens:,}")
                if on_step:
                    on_step(counters)
                if interrupted():
                    raise KeyboardInterrupt
    optimizer.finish()
    model.eval()
    return TrainResult(
        steps=counters.step,
        loss=counters.loss,
        tokens=counters.tokens,
        trained_tokens=counters.trained_tokens,
        seconds=counters.seconds,
        skipped_empty=counters.skipped_empty,
        skipped_bad=counters.skipped_bad,
        resumed_from=first,
        precision=precision,
    )


def _step(
    batch: Batch,
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    config: TrainConfig,
    counters: Counters,
    device: torch.device,
) -> None:
    """One optimizer step; one without trained tokens or a finite gradient changes no weight."""
    if batch.n_trained == 0:
        counters.skipped_empty += 1
        return
    optimizer.clear_gradients()
    parts = [
        TensorBatch.of(part, device) for part in batch.split(config.micro_batches) if part.n_trained
    ]
    total = objective.backward(model, parts, batch.n_trained, optimizer.collect_gradients)
    norm = optimizer.clip_gradients()
    counters.grad_norm = norm if math.isfinite(norm) else None
    counters.tokens += batch.n_tokens
    counters.trained_tokens += batch.n_trained
    counters.window_tokens += batch.n_tokens
    if math.isfinite(total) and math.isfinite(norm):
        optimizer.step(rate_at(counters.step, config), counters.step)
        counters.bad_in_a_row = 0
        counters.window_loss += total
        counters.window_trained += batch.n_trained
        return
    counters.skipped_bad += 1
    counters.bad_in_a_row += 1
    if counters.bad_in_a_row >= config.max_bad_steps:
        raise HoneError(
            f"Training stopped at step {counters.step + 1}: the loss or the gradient was not "
            f"finite in {counters.bad_in_a_row} steps in a row. Lower the learning rate "
            f"({config.learning_rate:g}, Muon {config.muon_learning_rate:g}) or lengthen the "
            f"warmup ({config.warmup_steps} steps), and start over with --fresh."
        )


def _report(metrics: MetricsLog, counters: Counters, config: TrainConfig) -> None:
    """Write a line for the window of steps since the last one, and begin the next window."""
    trained = counters.window_trained
    counters.loss = counters.window_loss / trained if trained else None
    rate = rate_at(counters.step - 1, config)
    metrics.write(
        {
            "step": counters.step,
            "loss": counters.loss,
            "lr": rate * config.learning_rate,
            "tokens": counters.tokens,
            "trained_tokens": counters.trained_tokens,
            "grad_norm": counters.grad_norm,
            "seconds": round(counters.seconds, 3),
            "tokens_per_second": round(counters.window_tokens / counters.window_seconds, 1),
        }
    )
    counters.window_loss, counters.window_seconds = 0.0, 0.0
    counters.window_tokens, counters.window_trained = 0, 0


def _evaluated(
    evaluate: Callable[[nn.Module, int], Mapping[str, Any]],
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
) -> Mapping[str, Any]:
    """The evaluation's figures, with no trace left in the model or the random stream."""
    model.eval()
    devices = _cuda_only(next(model.parameters()).device)
    with torch.random.fork_rng(devices), optimizer.averaged(), torch.no_grad():
        result = evaluate(model, step)
    model.train()
    return result


def _cuda_only(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    return "bf16" if preferred_dtype(device) == torch.bfloat16 else "fp32"
