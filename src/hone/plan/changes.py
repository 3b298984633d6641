"""What to change when a job does not fit.

Changes are ranked by what they leave as it was, then by the time that they cost: first what
computes the same on the same device (smaller micro-batches, recomputation, state in the host's
memory), then state in 8 bits, adapters, adapters beside 4-bit weights, and more devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from hone.models.config import ModelConfig
from hone.plan.checks import divides
from hone.plan.devices import Device
from hone.plan.jobs import ServeJob, TrainJob
from hone.plan.serving import serving_needs
from hone.plan.training import Trainings

# Changes that are taken together at most.
_MOST_STEPS = 3


@dataclass(frozen=True, slots=True)
class Change:
    """Something that makes a job fit.

    Attributes:
        steps: what to do, in words.
        job: the changed job.
        peak: bytes that it needs.
        slowdown: time per token over that of the job as it was.
    """

    steps: tuple[str, ...]
    job: TrainJob | ServeJob
    peak: int
    slowdown: float

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"steps": list(self.steps), "peak": self.peak, "slowdown": self.slowdown}


@dataclass(frozen=True, slots=True)
class _Step:
    """One way to save memory.

    Attributes:
        kind: only one of a kind is taken.
        rank: how much it changes what is computed.
        words: for people.
        fields: of the job.
    """

    kind: str
    rank: int
    words: str
    fields: tuple[tuple[str, Any], ...]

    @property
    def idea(self) -> str:
        """What it has in common with those that do more of the same."""
        return self.kind if self.kind in ("micro-batch", "sharding") else self.words


def cheapest_changes(
    config: ModelConfig,
    job: TrainJob | ServeJob,
    device: Device,
    trainings: Trainings | None,
    count: int,
    settings_only: bool,
) -> tuple[Change, ...]:
    """At most ``count`` changes that make ``job`` fit ``device``, the cheapest first.

    Args:
        settings_only: neither another method nor more devices.
    """
    if isinstance(job, ServeJob):
        return _serving_changes(config, job, device, count)
    assert trainings is not None
    return _training_changes(job, device, trainings, count, settings_only)


def _training_changes(
    job: TrainJob, device: Device, trainings: Trainings, count: int, settings_only: bool
) -> tuple[Change, ...]:
    before = job.step_tokens / trainings.needs(job).seconds
    steps = list(_training_steps(job, device))
    if settings_only:
        steps = [step for step in steps if step.kind not in ("method", "sharding")]
    found: list[tuple[int, float, Change]] = []
    taken: list[frozenset[str]] = []
    # What leaves more as it was first; of that, fewer changes first.
    for rank in sorted({step.rank for step in steps}):
        allowed = [step for step in steps if step.rank <= rank]
        for many in range(1, _MOST_STEPS + 1):
            for chosen in combinations(allowed, many):
                own = frozenset(step.idea for step in chosen)
                highest = max(step.rank for step in chosen)
                if highest < rank or len({step.kind for step in chosen}) < many:
                    continue
                if any(own >= less for less in taken):
                    continue
                changed = replace(job, **dict(field for step in chosen for field in step.fields))
                needs = trainings.needs(changed)
                peak = sum(needs.parts.values())
                if peak > device.usable:
                    continue
                taken.append(own)
                slowdown = before / (changed.step_tokens / needs.seconds)
                change = Change(tuple(step.words for step in chosen), changed, peak, slowdown)
                found.append((sum(step.rank for step in chosen), slowdown, change))
        if len(found) >= count:
            break
    found.sort(key=lambda one: one[:2])
    return tuple(change for _, _, change in found[:count])


def _training_steps(job: TrainJob, device: Device) -> Iterator[_Step]:
    parts = 2
    while parts < 2 * len(job.lengths):
        yield _Step("micro-batch", 0, *_smaller(job, min(parts, len(job.lengths))))
        parts *= 2
    if job.activation_checkpointing == "none":
        yield _Step(
            "checkpointing",
            0,
            "selective activation checkpointing",
            (("activation_checkpointing", "selective"),),
        )
    if job.activation_checkpointing != "blocks":
        yield _Step(
            "checkpointing",
            0,
            "activation checkpointing of every block",
            (("activation_checkpointing", "blocks"), ("checkpointed_blocks", 1)),
        )
    if device.cuda and not job.offload_activations:
        yield _Step("offload", 0, "activations in host memory", (("offload_activations", True),))
    if job.optimizer in ("adamw", "muon", "adamw_8bit") and device.cuda:
        paged = "paged_adamw_8bit" if job.optimizer == "adamw_8bit" else "paged_adamw"
        rank = 1 if job.optimizer == "muon" else 0
        yield _Step("optimizer", rank, f"the optimizer {paged}", (("optimizer", paged),))
    if job.optimizer in ("adamw", "muon", "paged_adamw"):
        name = "paged_adamw_8bit" if job.optimizer == "paged_adamw" else "adamw_8bit"
        yield _Step("optimizer", 1, f"the optimizer {name}", (("optimizer", name),))
    if job.ema:
        yield _Step("mean", 1, "no mean of the weights", (("ema", 0.0),))
    if job.precision == "fp32" and device.cuda:
        yield _Step("precision", 1, "precision bf16", (("precision", "bf16"),))
    if job.method == "full":
        yield _Step("method", 2, "LoRA", (("method", "lora"), ("freeze", ())))
    if job.method != "qlora":
        yield _Step("method", 3, "QLoRA", (("method", "qlora"), ("freeze", ())))
    yield from _sharding(job)


def _smaller(job: TrainJob, parts: int) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Sequences shared out over so many times the micro-batches; the largest of these."""
    lengths = tuple(sorted(job.lengths, reverse=True)[::parts])
    count = job.micro_batches * parts
    fields: list[tuple[str, Any]] = [("lengths", lengths), ("micro_batches", count)]
    if job.source_lengths:
        fields.append(("source_lengths", tuple(sorted(job.source_lengths, reverse=True)[::parts])))
    if job.trained is not None:
        trained = max(1, job.trained * sum(lengths) // job.batch_tokens)
        fields.append(("trained", trained))
    some = "1 sequence" if len(lengths) == 1 else f"{len(lengths)} sequences"
    return f"micro-batches of {some}, {count} to a step", tuple(fields)


def _sharding(job: TrainJob) -> Iterator[_Step]:
    layout = job.layout
    for zero, devices in ((2, 2), (3, 2), (3, 4), (3, 8), (3, 16)):
        data = max(layout.data, devices)
        if zero <= layout.zero and data <= layout.data:
            continue
        changed = replace(layout, zero=max(zero, layout.zero), data=data)
        words = f"ZeRO-{zero} over {data} devices"
        yield _Step("sharding", 3 + devices, words, (("layout", changed),))


def _serving_changes(
    config: ModelConfig, job: ServeJob, device: Device, count: int
) -> tuple[Change, ...]:
    before = serving_needs(config, job, device, 1.0).decode / job.requests
    candidates: list[tuple[str, ServeJob]] = []
    if job.prefill == 0 and job.context > 512:
        candidates.append(("prefill in chunks of 512 tokens", replace(job, prefill=512)))
    most = serving_needs(config, job, device, 1.0).requests
    if 0 < most < job.requests:
        candidates.append((f"{most} requests at a time", replace(job, requests=most)))
    if job.cache in ("float32", "bfloat16", "float16"):
        candidates.append(("keys and values in int8", replace(job, cache="int8")))
    for weights in ("bfloat16", "int8", "nf4"):
        order = ("float32", "bfloat16", "int8", "nf4")
        now = "bfloat16" if job.weights == "float16" else job.weights
        if order.index(weights) > order.index(now):
            candidates.append((f"weights in {weights}", replace(job, weights=weights)))
    context = serving_needs(config, replace(job, requests=1), device, 1.0).context
    if context and context // job.requests < job.context:
        shorter = max(1, context // job.requests // 64 * 64)
        candidates.append((f"a context of {shorter:,} tokens", replace(job, context=shorter)))
    for devices in (2, 4, 8):
        if devices > job.tensor and divides(config, devices):
            words = f"tensor parallelism over {devices} devices"
            candidates.append((words, replace(job, tensor=devices)))
    found = []
    for words, changed in candidates:
        needs = serving_needs(config, changed, device, 1.0)
        peak = sum(needs.parts.values())
        if peak <= device.usable:
            slowdown = needs.decode / changed.requests / before
            found.append(Change((words,), changed, peak, slowdown))
    return tuple(found[:count])
