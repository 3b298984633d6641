"""What a training run is predicted to take, from its settings and its batches, before it begins."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from hone.core.errors import CapacityError
from hone.data import Batch, PackedBatches
from hone.evals.formatting import size
from hone.kernels import preferred_dtype
from hone.models.config import ModelConfig
from hone.plan import Lora, Plan, TrainJob, plan
from hone.recipes.machine import device_name, memory_budget, plan_device

if TYPE_CHECKING:
    from hone.train import Expected, TrainConfig

# Epochs have the same batches in another order, so the first steps tell the heaviest.
_STEPS_LOOKED_AT = 200
# Of the planner's changes some are not a matter of settings: other devices, another method.
_CHANGES_LOOKED_AT = 16
_REMEDIES = (
    "micro_batches",
    "activation_checkpointing",
    "offload_activations",
    "optimizer",
    "precision",
    "ema",
)


def precision_of(asked: str, device: str) -> str:
    """``fp32``, ``bf16`` or ``fp16``: what ``auto`` means on ``device``."""
    if asked != "auto":
        return asked
    return "bf16" if preferred_dtype(device) == torch.bfloat16 else "fp32"


def heaviest_step(batches: PackedBatches, parts: int, steps: int) -> int:
    """Which of the first ``steps`` steps has the micro-batch that takes most memory."""
    count = min(batches.batches_per_epoch, _STEPS_LOOKED_AT, steps)
    return max(range(count), key=lambda step: max(map(_weight, batches.at(step).split(parts))))


def largest_part(batches: PackedBatches, parts: int, steps: int = _STEPS_LOOKED_AT) -> Batch:
    """Of the micro-batches of the first epoch, or of ``steps``, the one that takes most memory."""
    return max(batches.at(heaviest_step(batches, parts, steps)).split(parts), key=_weight)


def forecast(
    config: ModelConfig,
    part: Batch,
    settings: "TrainConfig",
    device: str,
    *,
    tokens_per_step: int,
    method: str = "full",
    lora: Lora | None = None,
    budget: int | None = None,
) -> Plan:
    """The plan of a run whose heaviest micro-batch is ``part``.

    Args:
        method: "full", "lora" or "qlora".
        budget: bytes that the run may take; None for most of what is free.
    """
    sources = () if part.source_cu_seqlens is None else _lengths(part.source_cu_seqlens)
    job = TrainJob(
        lengths=_lengths(part.cu_seqlens),
        source_lengths=sources,
        trained=part.n_trained if part.targets_B is None else None,
        micro_batches=settings.micro_batches,
        tokens=settings.steps * tokens_per_step,
        method=method,  # type: ignore[arg-type]
        optimizer=settings.optimizer,
        precision=precision_of(settings.precision, device),  # type: ignore[arg-type]
        activation_checkpointing=settings.activation_checkpointing,
        checkpointed_blocks=settings.checkpointed_blocks,
        offload_activations=settings.offload_activations,
        freeze=settings.freeze,
        ema=settings.ema,
        lora=lora or Lora(),
    )
    return plan(config, job, plan_device(device, memory_budget(device, budget)))


def check_fits(planned: Plan, device: str) -> None:
    """Refuse a run that cannot fit.

    Raises:
        CapacityError: names the cheapest changes that would make it fit.
    """
    if not planned.fits:
        raise CapacityError(
            f"This run does not fit: its predicted peak is {size(planned.peak)}, and "
            f"{device_name(device)} has {size(planned.device.usable)} for it. {remedies(planned)}"
        )


def remedies(planned: Plan) -> str:
    """What would make a run fit, in a sentence: settings that hone can train with."""
    asked = planned.job
    assert isinstance(asked, TrainJob)
    found = []
    for change in planned.changes(_CHANGES_LOOKED_AT):
        job = change.job
        assert isinstance(job, TrainJob)
        settings = [
            f"{name} = {json.dumps(value)}"
            for name in _REMEDIES
            if (value := getattr(job, name)) != getattr(asked, name)
        ]
        if settings and job.layout == asked.layout and job.method == asked.method:
            found.append(f"{' and '.join(settings)} ({size(change.peak)})")
    if not found:
        return "Take a smaller model, or shorter texts."
    return f"What would fit: {'; '.join(found[:3])}."


def expected_of(planned: Plan, heaviest: int | None = None) -> "Expected":
    """What the training compares itself with; ``heaviest`` is the step that the plan is of."""
    from hone.train import Expected

    assert isinstance(planned.job, TrainJob)
    flops = planned.device.flops(planned.job.precision != "fp32")
    return Expected(planned.flops_per_token, flops, planned.peak, heaviest)


def _weight(part: Batch) -> float:
    """About what a micro-batch takes: tokens, and pairs of them in attention."""
    sources: Sequence[int] = ()
    if part.source_cu_seqlens is not None:
        sources = _lengths(part.source_cu_seqlens)
    lengths = [*_lengths(part.cu_seqlens), *sources]
    return sum(lengths) + sum(length**2 for length in lengths) / 256


def _lengths(bounds: Any) -> tuple[int, ...]:
    return tuple(int(b - a) for a, b in pairwise(bounds))
