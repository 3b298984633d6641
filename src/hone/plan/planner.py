"""A plan: what a job takes on a device, before anything of it exists."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hone.models.config import ModelConfig
from hone.plan.changes import Change, cheapest_changes
from hone.plan.checks import check_job, warnings
from hone.plan.devices import Device
from hone.plan.flops import active_weights
from hone.plan.jobs import ServeJob, TrainJob
from hone.plan.serving import ServingNeeds, serving_needs
from hone.plan.training import TrainingNeeds, Trainings
from hone.plan.weights import count_parameters

# Shares of a device's rates that hone reaches: measured on a CPU (docs/benchmarks.md: 73% of its
# matrix rate in training, a third of its bandwidth in decoding), customary on a GPU.
EFFICIENCY = {"cpu": {"train": 0.7, "serve": 0.35}, "cuda": {"train": 0.4, "serve": 0.6}}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job takes.

    Attributes:
        job, device: what was asked.
        parameters: weights of the model.
        active: weights that a token is multiplied with.
        trained: numbers that are trained; 0 when serving.
        parts: bytes on the device that needs the most, at the peak, by name.
        host: bytes in the host's memory, by name.
        flops_per_token: operations of one token, of a whole training step or of decoding.
        tokens_per_second: on all devices, while decoding when serving.
        seconds: of one training step, or of one token of every request.
        efficiency: the share of the device's rates that this assumes.
        serving: more about serving.
    """

    job: TrainJob | ServeJob
    device: Device
    parameters: int
    active: int
    trained: int
    parts: Mapping[str, int]
    host: Mapping[str, int]
    flops_per_token: float
    tokens_per_second: float
    seconds: float
    efficiency: float
    serving: ServingNeeds | None = None
    _trainings: Trainings | None = field(default=None, repr=False, compare=False)
    _config: ModelConfig | None = field(default=None, repr=False, compare=False)

    @property
    def peak(self) -> int:
        """Most bytes that one device holds at one time."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.peak <= self.device.usable

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.job.layout.devices if isinstance(self.job, TrainJob) else self.job.tensor

    @property
    def run_seconds(self) -> float | None:
        """Of all tokens of a training run; None when it does not say how many."""
        if not isinstance(self.job, TrainJob) or not self.job.tokens:
            return None
        return self.job.tokens / self.tokens_per_second

    @property
    def cost(self) -> float | None:
        """Of the run, or of a million generated tokens; None without a price."""
        if not self.device.price:
            return None
        seconds = self.run_seconds
        if isinstance(self.job, ServeJob):
            seconds = 1e6 / self.tokens_per_second
        return None if seconds is None else seconds / 3600 * self.device.price * self.devices

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what the model was not made for, such as texts beyond its context."""
        return () if self._config is None else warnings(self._config, self.job)

    def changes(self, count: int = 3, *, settings_only: bool = False) -> tuple[Change, ...]:
        """The cheapest changes that would make the job fit; none where it fits, or nothing does.

        Args:
            settings_only: neither another method of training nor more devices.
        """
        if self.fits or self._config is None:
            return ()
        return cheapest_changes(
            self._config, self.job, self.device, self._trainings, count, settings_only
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        record = {
            "job": _job(self.job),
            "device": asdict(self.device) | {"usable": self.device.usable},
            "devices": self.devices,
            "parameters": self.parameters,
            "active_parameters": self.active,
            "trained_parameters": self.trained,
            "parts": dict(self.parts),
            "host_parts": dict(self.host),
            "peak": self.peak,
            "fits": self.fits,
            "flops_per_token": self.flops_per_token,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "efficiency": self.efficiency,
            "run_seconds": self.run_seconds,
            "cost": self.cost,
            "warnings": list(self.warnings),
            "changes": [change.to_dict() for change in self.changes()],
        }
        if self.serving is not None:
            record["serving"] = {
                "cache_bytes_per_token": self.serving.cache_per_token,
                "state_bytes_per_request": self.serving.state_per_request,
                "most_requests": self.serving.requests,
                "longest_context": self.serving.context,
                "prefill_seconds": self.serving.prefill,
                "compute_bound_from_requests": self.serving.turning_point,
            }
        return record


def plan(
    config: ModelConfig,
    job: TrainJob | ServeJob,
    device: Device,
    *,
    efficiency: float | None = None,
) -> Plan:
    """What ``job`` takes on ``device``, from the configuration alone.

    Memory is that of tensors, as an allocator counts them. Speeds are those of the device's figures
    times ``efficiency`` (None: :data:`EFFICIENCY`).

    Raises:
        ConfigError: a model that cannot do the job.
    """
    check_job(config, job)
    usual = EFFICIENCY["cuda" if device.cuda else "cpu"]
    if isinstance(job, ServeJob):
        reached = usual["serve"] if efficiency is None else efficiency
        serving = serving_needs(config, job, device, reached)
        return Plan(
            job,
            device,
            count_parameters(config),
            active_weights(config),
            0,
            serving.parts,
            {},
            serving.flops,
            job.requests / serving.decode,
            serving.decode,
            reached,
            serving,
            _config=config,
        )
    if config.head == "embedding" and config.encoder is None and job.source_lengths:
        # Pairs of texts: both are read, behind one another.
        job = replace(job, lengths=job.lengths + job.source_lengths, source_lengths=())
    reached = usual["train"] if efficiency is None else efficiency
    trainings = Trainings(config, device, reached)
    needs: TrainingNeeds = trainings.needs(job)
    return Plan(
        job,
        device,
        count_parameters(config),
        active_weights(config),
        needs.trained,
        needs.parts,
        needs.host,
        needs.flops.total,
        job.step_tokens / needs.seconds,
        needs.seconds,
        reached,
        _trainings=trainings,
        _config=config,
    )


def _job(job: TrainJob | ServeJob) -> dict[str, Any]:
    mode = "train" if isinstance(job, TrainJob) else "serve"
    return {"mode": mode} | asdict(job)
