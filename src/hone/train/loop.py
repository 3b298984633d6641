"""The training loop.

A step is a function of its number and the state before it: a killed run that goes on from its last
checkpoint ends with the same bits. Several processes take each step together, and the first of them
alone writes: lines, checkpoints, the display.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hone.core.errors import ConfigError
from hone.kernels import keep_freed_memory, preferred_dtype
from hone.parallel import Processes
from hone.train.alone import alone_in
from hone.train.batches import Batches
from hone.train.checkpoints import Checkpoint, CheckpointStore
from hone.train.config import TrainConfig
from hone.train.following import Expected, Following, MemoryGauge
from hone.train.freezing import frozen
from hone.train.interrupt import deferred_interrupt
from hone.train.objectives import Objective, SummedLoss
from hone.train.optimizers import Optimizer
from hone.train.prefetch import batches_ahead
from hone.train.resume import (
    Counters,
    check_alike,
    check_same,
    identity,
    machine,
    manifest,
    restore,
    warn_of_changes,
)
from hone.train.step import FIRST_SCALE, Stepper, stop_after_bad_steps
from hone.train.trackers import Tracker

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Evaluate = Callable[[nn.Module, int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Attributes:
        loss: mean over the trained tokens of the last window of steps; None if none was trained.
        seconds: in all attempts at the run.
        skipped_empty, skipped_bad, skipped_overflow: steps that changed no weight; see
            :class:`Counters`.
        resumed_from: the step that this attempt began at.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        peak_bytes: most memory held, see :class:`MemoryGauge`.
        tensor_bytes: most bytes of tensors in the heaviest step, if that was told and is done here.
        best_loss, best_step: the lowest ``loss`` of an evaluation; None without ``keep_best``,
            and in other processes than the first.
    """

    steps: int
    loss: float | None
    tokens: int
    trained_tokens: int
    seconds: float
    skipped_empty: int
    skipped_bad: int
    skipped_overflow: int
    resumed_from: int
    precision: str
    peak_bytes: int | None
    tensor_bytes: int | None
    best_loss: float | None
    best_step: int | None


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    objective: Objective | None = None,
    processes: Processes | None = None,
    expected: Expected | None = None,
    trackers: Sequence[Tracker] = (),
    on_step: Callable[[Counters], None] | None = None,
    evaluate: Evaluate | None = None,
    fresh: bool = False,
    label: str = "Training",
) -> TrainResult:
    """Train ``model`` in place, going on where an earlier run in ``out_dir`` stopped.

    Args:
        model: has what the objective needs. It must come in with the same weights each time, and
            is left with the final ones.
        batches: the batch of each step.
        config: the settings.
        out_dir: gets ``metrics.jsonl`` and ``checkpoints/``.
        objective: what the gradients are of; by default :class:`SummedLoss`.
        processes: those that compute each step together, every one with the same arguments; by
            default this one does alone.
        expected: what the display compares with.
        trackers: get the lines of ``metrics.jsonl`` too.
        on_step: called after each step, with counters that are not to be changed. Like
            ``evaluate`` in the first process only.
        evaluate: called with the (averaged) model and the number of steps done, every
            ``evaluate_every`` steps; what it returns becomes a line of ``metrics.jsonl``, a
            ``loss`` by the name of ``held_out_loss``.
        fresh: forget the earlier run.
        label: for the progress bar.

    Raises:
        ConfigError: the earlier run had other settings, data or weights to start from, or the
            settings do not fit the model.
        CapacityError: the disk is full; the last checkpoint is intact.
        CheckpointError: all checkpoints are damaged.
        HoneError: ``max_bad_steps`` steps in a row had no finite loss and gradient, another
            process has stopped, or another run is in ``out_dir``.
        KeyboardInterrupt: Ctrl-C was pressed; the step was finished and a checkpoint written.
    """
    out_dir, processes = Path(out_dir), processes or Processes()
    objective = objective or SummedLoss()
    device = next(model.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(processes.leaving_on_error())
        if processes.first:
            stack.enter_context(alone_in(out_dir))
        stack.enter_context(frozen(model, config.freeze))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        interrupted = stack.enter_context(deferred_interrupt())

        evaluating = _evaluating(config, evaluate)
        store = CheckpointStore(out_dir / "checkpoints", config.keep_last)
        start = _begin(model, batches, config, objective, store, processes, fresh)
        optimizer, counters, precision = start.optimizer, start.counters, start.precision
        stepper = Stepper(model, objective, optimizer, config, processes, precision == "fp16")
        first, before, begun = counters.step, counters.seconds, time.perf_counter()
        following = None
        if processes.first:
            following = stack.enter_context(
                Following(
                    out_dir,
                    config,
                    counters,
                    start.gauge,
                    label=label,
                    devices=processes.count,
                    expected=expected,
                    trackers=trackers,
                )
            )
        coming = stack.enter_context(batches_ahead(batches, first, config.steps, config.workers))

        while counters.step < config.steps:
            started = time.perf_counter()
            batch = next(coming)
            take = partial(stepper.take, batch, counters)
            if expected is not None and counters.step == expected.heaviest_step:
                start.gauge.count(take, optimizer.held())
            else:
                take()
            counters.step += 1
            now = time.perf_counter()
            counters.window_seconds += now - started
            counters.seconds = before + now - begun
            stop_after_bad_steps(batch, counters, config, out_dir, processes)
            stopping = processes.any(interrupted())
            step, last = counters.step, counters.step == config.steps
            speed = counters.close_window() if step % config.log_every == 0 or last else None
            if following is not None:
                due = step % config.checkpoint_every == 0 or last or stopping
                if speed is not None:
                    following.report(counters, speed)
                if evaluating and step % config.evaluate_every == 0:
                    figures = _evaluated(evaluating, model, optimizer, step)
                    following.report_evaluation(step, figures)
                    due |= config.keep_best and _is_best(figures, counters)
                if due:
                    counters.seconds = before + time.perf_counter() - begun
                    counters.metrics_bytes = following.sync()
                    about = manifest(counters, start.wanted, start.where)
                    store.save(step, optimizer.state(), about, keep=[counters.best_step])
                following.show(counters)
                if on_step:
                    on_step(counters)
            if stopping:
                raise KeyboardInterrupt
        # For no process is it over before the last checkpoint is written, nor in time for Ctrl-C.
        if processes.any(interrupted()):
            raise KeyboardInterrupt
    optimizer.finish()
    _adjoin_weights(model)
    model.eval()
    return TrainResult(
        steps=counters.step,
        loss=counters.loss,
        tokens=counters.tokens,
        trained_tokens=counters.trained_tokens,
        seconds=counters.seconds,
        skipped_empty=counters.skipped_empty,
        skipped_bad=counters.skipped_bad,
        skipped_overflow=counters.skipped_overflow,
        resumed_from=first,
        precision=precision,
        peak_bytes=start.gauge.peak(),
        tensor_bytes=start.gauge.tensor_bytes,
        best_loss=counters.best_loss,
        best_step=counters.best_step,
    )


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run begins, or goes on.

    Attributes:
        wanted: what the weights depend on; see :func:`identity`.
        where: what their last bits may depend on; see :func:`machine`.
    """

    optimizer: Optimizer
    counters: Counters
    gauge: MemoryGauge
    wanted: dict[str, Any]
    where: dict[str, Any]

    @property
    def precision(self) -> str:
        precision: str = self.where["precision"]
        return precision


def _begin(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    objective: Objective,
    store: CheckpointStore,
    processes: Processes,
    fresh: bool,
) -> _Start:
    """Prepare the model and its optimizer, and take over what the last checkpoint has."""
    checkpoint = None if fresh else _last_checkpoint(store, processes)
    device = next(model.parameters()).device
    wanted = identity(model, batches.fingerprint, config, objective)
    check_alike(processes, wanted, checkpoint.step if checkpoint else 0)
    where = machine(_precision(config, device), device, config.micro_batches, processes.count)
    if checkpoint is not None:
        check_same(checkpoint, wanted)
        where["precision"] = checkpoint.manifest["machine"]["precision"]
        if processes.first:
            warn_of_changes(checkpoint, where)
    precision = where["precision"]
    gauge = MemoryGauge(model)
    optimizer = Optimizer(model, config, _DTYPES[precision])
    _prepare(model, config)
    if fresh and processes.first:
        store.clear()  # now that nothing is in the way of the new run
    if checkpoint is None:
        counters = Counters(loss_scale=FIRST_SCALE if precision == "fp16" else 1.0)
    else:
        counters = restore(checkpoint, optimizer)
        if counters.best_step not in store.steps():  # a later one that is lost had taken its place
            counters.best_loss = counters.best_step = None
    return _Start(optimizer, counters, gauge, wanted, where)


def _last_checkpoint(store: CheckpointStore, processes: Processes) -> Checkpoint | None:
    """What to go on from; the first process has tidied up before the others look."""
    checkpoint = store.latest() if processes.first else None
    processes.barrier()
    return checkpoint if processes.first else store.latest()


def _prepare(model: nn.Module, config: TrainConfig) -> None:
    """Have the model as training needs it."""
    _adjoin_weights(model)
    mode, offload = config.activation_checkpointing, config.offload_activations
    if set_mode := getattr(model, "set_activation_checkpointing", None):
        set_mode(mode, config.checkpointed_blocks, offload)
    elif mode != "none" or offload:
        raise ConfigError(
            f"{type(model).__name__} cannot compute activations again or offload them. Set "
            'activation_checkpointing to "none" and offload_activations to false.'
        )
    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
    model.train()


def _adjoin_weights(model: nn.Module) -> None:
    """Undo what a change of the weights' memory has done: it takes joint weights apart."""
    if adjoin_weights := getattr(model, "adjoin_weights", None):
        adjoin_weights()


def _evaluating(config: TrainConfig, evaluate: Evaluate | None) -> Evaluate | None:
    """``evaluate``, if it is to be called at all."""
    if not config.evaluate_every or evaluate is None:
        if config.keep_best:
            raise ConfigError(
                "The training setting keep_best needs evaluations to compare: set evaluate_every, "
                "and give data to evaluate on."
            )
        return None
    return evaluate


def _evaluated(
    evaluate: Evaluate, model: nn.Module, optimizer: Optimizer, step: int
) -> Mapping[str, Any]:
    """The evaluation's figures, with no trace left in the model."""
    model.eval()
    with optimizer.averaged(), torch.no_grad():
        result = evaluate(model, step)
    model.train()
    return result


def _is_best(figures: Mapping[str, Any], counters: Counters) -> bool:
    """Whether an evaluation's loss is the lowest until now; remembers it if so."""
    if "loss" not in figures:
        raise ConfigError(
            "The training setting keep_best compares the loss of evaluations, and this evaluation "
            f"has none, only: {', '.join(figures) or 'nothing'}."
        )
    loss = float(figures["loss"])
    if not math.isfinite(loss) or (counters.best_loss is not None and loss >= counters.best_loss):
        return False
    counters.best_loss, counters.best_step = loss, counters.step
    return True


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.precision != "auto":
        return config.precision
    return "bf16" if preferred_dtype(device) == torch.bfloat16 else "fp32"
