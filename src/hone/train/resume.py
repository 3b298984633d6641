"""What a checkpoint says about its run, and whether another run may go on from it."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError, ConfigError
from hone.train.checkpoints import Checkpoint
from hone.train.config import TrainConfig
from hone.train.optimizers import Optimizer

_log = logging.getLogger(__name__)
_WHOSE = {
    "data": "the training data or its order",
    "parameters": "the shape of the model",
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
        loss: mean over the trained tokens of the last window.
    """

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    skipped_empty: int = 0
    skipped_bad: int = 0
    bad_in_a_row: int = 0
    loss: float | None = None
    grad_norm: float | None = None
    metrics_bytes: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0
    window_trained: int = 0
    window_seconds: float = 0.0


def identity(model: nn.Module, data: str, config: TrainConfig) -> dict[str, Any]:
    """All that the trained weights depend on; taken before the first step."""
    digest = hashlib.sha256()
    shapes = []
    for name, parameter in model.named_parameters():
        shapes.append(f"{name} {tuple(parameter.shape)}")
        values = parameter.detach().float().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return {
        "config": config.identity(),
        "data": data,
        "parameters": hashlib.sha256("\n".join(shapes).encode()).hexdigest(),
        "initial_weights": digest.hexdigest(),
    }


def machine(precision: str, device: torch.device) -> dict[str, Any]:
    """What the bits of a result may depend on besides; a change is warned of, not refused."""
    return {
        "precision": precision,
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
    # Other shapes mean other weights; one reason is enough.
    changed = [key for key in ("data", "parameters") if before.get(key) != wanted[key]]
    if not changed and before.get("initial_weights") != wanted["initial_weights"]:
        changed = ["initial_weights"]
    differences += [f"{_WHOSE[key]} changed" for key in changed]
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


def snapshot(optimizer: Optimizer, device: torch.device) -> dict[str, Tensor]:
    """Every tensor that the rest of the run depends on."""
    tensors = optimizer.state()
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore(checkpoint: Checkpoint, optimizer: Optimizer, device: torch.device) -> Counters:
    """Put back what :func:`snapshot` took, and return the counters.

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
    if "random/cpu" in tensors:
        torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    saved = checkpoint.manifest.get("counters", {})
    try:
        return Counters(**{field.name: saved[field.name] for field in fields(Counters)})
    except KeyError as error:
        raise CheckpointError(
            f"The manifest of the checkpoint {checkpoint.path} lacks the counter {error}."
        ) from error


def manifest(
    counters: Counters, wanted: Mapping[str, Any], where: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a checkpoint."""
    return {"step": counters.step, "counters": asdict(counters), "machine": dict(where), **wanted}
