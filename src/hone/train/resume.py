"""What a checkpoint says about its run, and whether another run may go on from it."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hone.adapters.layers import LoraEmbedding, LoraLinear
from hone.core.errors import CheckpointError, ConfigError
from hone.models.model import Model
from hone.parallel import Processes
from hone.train.checkpoints import Checkpoint
from hone.train.config import TrainConfig
from hone.train.objectives import Objective
from hone.train.optimizers import Optimizer

_log = logging.getLogger(__name__)
_WHOSE = {
    "data": "the training data or its order",
    "parameters": "the shape of the model",
    "trained": "which weights are trained",
    "settings": "the settings of the model or of its adapter",
    "initial_weights": "the weights to start from",
}


@dataclass(slots=True)
class Counters:
    """Where a run stands; a ``window`` is the time since the last line of ``metrics.jsonl``.

    Attributes:
        step: steps done, skipped ones included.
        tokens, trained_tokens: positions that were computed, and those with a loss.
        seconds: all time in the loop, in every process that worked on the run.
        skipped_empty, skipped_bad: steps without a trained token, and without a finite loss and
            gradient.
        skipped_overflow: steps with a finite loss that was scaled too high for float16's gradients.
        loss_scale: what the loss is multiplied by; 1 but with float16.
        bad_in_a_row, good_in_a_row: bad steps since the last good one, and good steps since the
            last that was not or that raised the scale.
        loss: mean over the trained tokens of the last window.
        best_loss, best_step: the lowest loss of an evaluation, and when it was.
    """

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    skipped_empty: int = 0
    skipped_bad: int = 0
    skipped_overflow: int = 0
    loss_scale: float = 1.0
    bad_in_a_row: int = 0
    good_in_a_row: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    metrics_bytes: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0
    window_trained: int = 0
    window_seconds: float = 0.0

    def close_window(self) -> float:
        """Take the loss of the window, begin the next; returns the tokens per second of this."""
        self.loss = self.window_loss / self.window_trained if self.window_trained else None
        speed = self.window_tokens / self.window_seconds
        self.window_loss, self.window_seconds = 0.0, 0.0
        self.window_tokens, self.window_trained = 0, 0
        return speed


def identity(
    model: nn.Module, data: str, config: TrainConfig, objective: Objective
) -> dict[str, Any]:
    """All that the trained weights depend on; taken before the first step."""
    parameters = dict(model.named_parameters())
    values = hashlib.sha256()
    for parameter in parameters.values():
        values.update(_bytes(parameter.float()))
    for buffer in model.buffers():  # such as a quantized base
        values.update(_bytes(buffer))
    return {
        "config": {**config.identity(), **objective.identity},
        "data": data,
        "parameters": _digest(f"{name} {tuple(p.shape)}" for name, p in parameters.items()),
        "trained": _digest(name for name, p in parameters.items() if p.requires_grad),
        "settings": _digest(_settings(model)),
        "initial_weights": values.hexdigest(),
    }


def _settings(model: nn.Module) -> Iterator[str]:
    """What a model computes with besides its weights, as far as hone's own layers know."""
    for name, module in model.named_modules():
        if isinstance(module, Model):
            yield f"{name} {module.config!r}"
        if isinstance(module, LoraLinear):
            yield f"{name} {module.scale!r} {module.dropout!r}"
        elif isinstance(module, LoraEmbedding):
            yield f"{name} {module.scale!r}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def machine(
    precision: str, device: torch.device, micro_batches: int, processes: int
) -> dict[str, Any]:
    """What the bits of a result may depend on besides; a change is warned of, not refused."""
    return {
        "precision": precision,
        "micro_batches": micro_batches,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
    }


def check_same(checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ConfigError: names what differs, before and now.
    """
    before = checkpoint.manifest
    old, new = before.get("config", {}), wanted["config"]
    differences = [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    changed = [key for key in _WHOSE if before.get(key) != wanted[key]]
    # What comes later may only follow from what comes first: other shapes mean other weights.
    if changed and (changed[0] == "data" or not differences):
        differences.append(f"{_WHOSE[changed[0]]} changed")
    if differences:
        raise ConfigError(
            f"{checkpoint.path.parent.parent} holds a run of step {checkpoint.step} with other "
            f"settings: {'; '.join(differences)}. Restore them to go on, or start over with "
            "--fresh."
        )


def warn_of_changes(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Say so when the machine is not the one that the run began on."""
    before = checkpoint.manifest.get("machine", {})
    changes = [
        f"{key} was {before.get(key)!r} and is {now[key]!r}"
        for key in now
        if before.get(key) != now[key]
    ]
    if changes:
        _log.warning(
            "Going on from step %d, but %s: the result may differ in its last bits from an "
            "uninterrupted run.",
            checkpoint.step,
            "; ".join(changes),
        )


def check_alike(processes: Processes, wanted: Mapping[str, Any], step: int) -> None:
    """Refuse processes that would not train the same.

    Raises:
        ConfigError: names one that differs from the first.
    """
    text = json.dumps([wanted, step], sort_keys=True)
    digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
    digests = processes.gather(digest)
    for rank, found in enumerate(digests):
        if not torch.equal(found, digests[0]):
            raise ConfigError(
                f"Process {rank} of {processes.count} has other settings, data, weights or "
                "checkpoints than process 0. Give all of them the same, checkpoints in a folder "
                "that all can read."
            )


def restore(checkpoint: Checkpoint, optimizer: Optimizer) -> Counters:
    """Put back the tensors of the optimizer, and return the counters.

    Raises:
        CheckpointError: the tensors are not those of this optimizer.
    """
    tensors = checkpoint.tensors()
    for name, target in optimizer.state().items():
        found = tensors.get(name)
        if found is None or found.shape != target.shape:
            what = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise CheckpointError(
                f"The checkpoint {checkpoint.path} does not fit: {name} is {what}. "
                "Start over with --fresh."
            )
    optimizer.load_state(tensors)
    saved = checkpoint.manifest.get("counters", {})
    try:
        return Counters(**{field.name: saved[field.name] for field in fields(Counters)})
    except KeyError as error:
        raise CheckpointError(
            f"The manifest of the checkpoint {checkpoint.path} lacks the counter {error}: another "
            "version of hone wrote it. Use that one, or start over with --fresh."
        ) from error


def manifest(
    counters: Counters, wanted: Mapping[str, Any], where: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a checkpoint."""
    return {"step": counters.step, "counters": asdict(counters), "machine": dict(where), **wanted}
