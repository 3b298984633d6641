"""What a training job takes on each device: memory by parts, and time.

Sharded layouts follow Rajbhandari et al. 2020 (ZeRO), Korthikanti et al. 2022 (tensor and sequence
parallelism), Narayanan et al. 2021 (pipelines) and Liu et al. 2023 (context parallelism).
"""

import math
from dataclasses import dataclass, replace
from functools import cache

from hone.models.config import ModelConfig
from hone.plan.devices import Device
from hone.plan.flops import Flops, training_flops
from hone.plan.jobs import TrainJob
from hone.plan.pack import Pack
from hone.plan.passes import AT_ONCE, PassMemory, Saving, pass_memory
from hone.plan.states import States, states
from hone.plan.trained import Numbers, Stage, Use


@dataclass(frozen=True, slots=True)
class TrainingNeeds:
    """Of one device, the one of a pipeline that needs the most.

    Attributes:
        parts: bytes at the peak, by name.
        host: bytes in the host's memory, by name.
        seconds: of one step.
        flops: operations of one token.
        trained: numbers that are trained, on all devices.
    """

    parts: dict[str, int]
    host: dict[str, int]
    seconds: float
    flops: Flops
    trained: int


class Trainings:
    """The needs of jobs that train the same model; what they have in common is computed once."""

    def __init__(self, config: ModelConfig, device: Device, efficiency: float) -> None:
        """``efficiency``: the share of the device's arithmetic rate that training reaches."""
        self._config, self._device, self._efficiency = config, device, efficiency
        self._numbers = cache(self._make_numbers)
        self._states = cache(self._make_states)
        self._pass = cache(self._make_pass)

    def needs(self, job: TrainJob) -> TrainingNeeds:
        """Those of ``job``."""
        stages: tuple[Stage, ...] = ("all",) if job.layout.pipeline == 1 else ("first", "last")
        found = [self._stage(job, stage) for stage in stages]
        parts, host, traffic = max(found, key=lambda one: sum(one[0].values()))
        numbers = self._numbers(Use.of(job), 1)
        flops = training_flops(
            self._config,
            numbers,
            job.lengths,
            job.source_lengths or job.lengths,
            job.activation_checkpointing,
        )
        seconds = self._compute_seconds(job, flops) + traffic
        return TrainingNeeds(parts, host, seconds, flops, numbers.gradient_numbers)

    def _stage(self, job: TrainJob, stage: Stage) -> tuple[dict[str, int], dict[str, int], float]:
        """Parts, parts in the host's memory, and seconds of traffic of one device."""
        layout, device = job.layout, self._device
        use = replace(Use.of(job), stage=stage)
        state = self._states(
            replace(use, tensor=layout.tensor), layout.pipeline, job.optimizer, bool(job.ema)
        )
        offload = job.offload_activations and device.cuda
        saving = Saving(job.activation_checkpointing, job.checkpointed_blocks, offload)
        during = self._pass(
            use,
            layout.pipeline,
            tuple(math.ceil(length / layout.context) for length in job.lengths),
            tuple(math.ceil(n / layout.context) for n in job.source_lengths or job.lengths),
            max(1, (job.trained or job.batch_tokens) // layout.context),
            saving,
        )
        # The first stage has begun as many micro-batches as there are stages.
        begun = 1 if stage == "last" else min(layout.pipeline, job.micro_batches)
        parts = self._parts(job, state, during, begun)
        shards = layout.data if layout.zero else 1
        host = {
            "optimizer state": _part(state.host, shards),
            "activations": _part(during.host, layout.tensor) * begun,
        }
        numbers = self._numbers(replace(use, tensor=layout.tensor), layout.pipeline)
        traffic = self._traffic_seconds(job, state, host, numbers.quantized_numbers)
        return parts, {name: size for name, size in host.items() if size}, traffic

    def _parts(
        self, job: TrainJob, state: States, during: PassMemory, begun: int
    ) -> dict[str, int]:
        """Bytes at the peak, which may be the update of the weights."""
        layout = job.layout
        data, zero, tensor = layout.data, layout.zero, layout.tensor
        everywhere, sharded = (data if zero == 3 else 1), (data if zero else 1)
        parts = {
            "weights": _part(state.weights, everywhere),
            "quantization constants": _part(state.constants, everywhere),
            "adapters": _part(state.adapters, everywhere),
            "float32 masters": _part(state.masters, sharded),
            "gradients": _part(state.gradients, data if zero >= 2 else 1),
            "optimizer state": _part(state.optimizer, sharded),
            "mean of weights": _part(state.ema, sharded),
        }
        working = max(0, during.peak - during.kept - during.loss - during.batch)
        passing = {
            "activations": _part(during.kept, tensor) * begun,
            "logits and loss": _part(during.loss, tensor),
            "working memory": _part(working, tensor),
            "batch": during.batch,
        }
        if everywhere > 1:  # one block is gathered while another is computed
            layers = math.ceil(self._config.num_hidden_layers / layout.pipeline)
            passing["working memory"] += 2 * state.weights // layers
        if state.step > sum(passing.values()):
            passing = {"working memory": _part(state.step, sharded)}
        return {name: size for name, size in (parts | passing).items() if size}

    def _compute_seconds(self, job: TrainJob, flops: Flops) -> float:
        """Arithmetic of one step; traffic between devices is taken to go on beside it."""
        layout = job.layout
        rate = self._device.flops(job.precision != "fp32") * self._efficiency
        tokens = job.batch_tokens * job.micro_batches
        seconds = flops.total * tokens / (layout.tensor * layout.pipeline * layout.context) / rate
        # The stages of a pipeline wait for the first and the last micro-batch to pass through.
        return seconds * (1 + (layout.pipeline - 1) / job.micro_batches)

    def _traffic_seconds(
        self, job: TrainJob, state: States, host: dict[str, int], quantized: int
    ) -> float:
        """Reading and writing weights, gradients and state in one step."""
        passes = 3 if job.activation_checkpointing == "blocks" else 2
        held = state.weights + state.constants + state.adapters
        # Dequantized weights are written and read in 16 bits.
        each = passes * (held + 2 * 2 * quantized) + 2 * state.gradients
        shards = job.layout.data if job.layout.zero else 1
        update = 2 * state.optimizer + 3 * state.masters + 2 * state.gradients
        seconds = (job.micro_batches * each + update / shards) / self._device.bandwidth
        moved = 2 * host["optimizer state"] + 2 * host["activations"] * job.micro_batches
        return seconds + moved / self._device.host_bandwidth

    def _make_numbers(self, use: Use, stages: int) -> Numbers:
        return Numbers.of(stage_config(self._config, stages), use)

    def _make_states(self, use: Use, stages: int, optimizer: str, ema: bool) -> States:
        return states(self._numbers(use, stages), optimizer, ema, self._device.cuda)

    def _make_pass(
        self,
        use: Use,
        stages: int,
        lengths: tuple[int, ...],
        sources: tuple[int, ...],
        scored: int,
        saving: Saving,
    ) -> PassMemory:
        return pass_memory(
            stage_config(self._config, stages),
            self._numbers(use, stages),
            Pack(lengths),
            Pack(sources),
            min(scored, sum(lengths)),
            saving,
            use.lora.dropout,
            use.stage,
            AT_ONCE["cuda" if self._device.cuda else "cpu"],
        )


def stage_config(config: ModelConfig, stages: int) -> ModelConfig:
    """A model with as many blocks as one stage of a pipeline."""
    if stages == 1:
        return config
    encoder = config.encoder
    if encoder is not None:
        layers = math.ceil(encoder.num_hidden_layers / stages)
        encoder = replace(encoder, num_hidden_layers=layers)
    layers = math.ceil(config.num_hidden_layers / stages)
    return replace(config, num_hidden_layers=layers, encoder=encoder)


def _part(size: int, devices: int) -> int:
    return math.ceil(size / devices)
