"""Which numbers of a model are trained, which are frozen, and in which format each is kept."""

import math
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from hone.models.config import ModelConfig
from hone.plan.blocks import Layer
from hone.plan.jobs import Lora, Method, Precision, TrainJob
from hone.plan.targets import Adapter, find_adapters, is_quantized
from hone.plan.weights import Weight, is_tied, weights_of

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Layers whose outputs are scores of classes: neither adapted by "all-linear" nor in 4 bits.
SCORES = ("lm_head", "score", "gate", "shared_expert_gate")
Stage = Literal["all", "first", "last"]
_LAST_NORMS = ("model.norm.weight", "model.norm.bias", "decoder.norm.weight", "decoder.norm.bias")


@dataclass(frozen=True, slots=True)
class Use:
    """What a job does with weights: what their numbers depend on.

    Attributes:
        stage: which weights a device has: "all", or of a pipeline the "first" stage's, without the
            output layer, or the "last", without the embedding.
        tensor: devices that every matrix is shared out over.
    """

    method: Method
    precision: Precision
    freeze: tuple[str, ...]
    lora: Lora
    stage: Stage = "all"
    tensor: int = 1

    @classmethod
    def of(cls, job: TrainJob) -> "Use":
        """That of ``job``, on one device."""
        return cls(job.method, job.precision, job.freeze, job.lora)


@dataclass
class Numbers:
    """The weights of one training job.

    Attributes:
        weights: those of the device.
        size: bytes of a number in the dtype that is computed in.
        trained: names of those that have a gradient.
        adapted: adapters by the names of their matrices.
        quantized: names of those in NF4.
    """

    weights: list[Weight]
    size: int
    trained: frozenset[str]
    adapted: dict[str, Adapter] = field(default_factory=dict)
    quantized: frozenset[str] = frozenset()
    _layers: dict[str, Layer] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ModelConfig, use: Use) -> "Numbers":
        """Those that ``use`` makes of the weights of ``config``."""
        weights = weights_of(config)
        adapted: dict[str, Adapter] = {}
        quantized: frozenset[str] = frozenset()
        trained: frozenset[str] = frozenset()
        if use.method == "full":
            patterns = use.freeze
            trained = frozenset(
                weight.name
                for weight in weights
                if not any(fnmatchcase(weight.name, pattern) for pattern in patterns)
            )
        else:
            found = find_adapters(config, weights, use.lora.targets, use.lora.rank)
            adapted = {adapter.weight.name: adapter for adapter in found}
            if use.method == "qlora":
                quantized = frozenset(w.name for w in weights if is_quantized(config, w))
        if use.stage != "all":
            tied = is_tied(config)
            weights = [w for w in weights if _is_on(w, use.stage, tied)]
        if use.tensor > 1:
            weights = [_part_of(weight, use.tensor) for weight in weights]
        if use.stage != "all" or use.tensor > 1:
            adapted = {
                w.name: replace(adapted[w.name], weight=w) for w in weights if w.name in adapted
            }
        return cls(weights, _BYTES[use.precision], trained, adapted, quantized)

    @property
    def keeps_gradients(self) -> bool:
        """Gradients of weights stay in 16 bits until they are added to float32 ones."""
        return self.size != 4

    @cached_property
    def trains_embedding(self) -> bool:
        """The embedding of tokens has a gradient."""
        names = ("model.embed_tokens.weight", "model.shared.weight")
        return any(name in self.trained for name in names)

    def trains_bias(self, path: str) -> bool:
        """The bias of relative positions of the stack at ``path`` has a gradient."""
        return f"{path}.relative_bias.weight" in self.trained

    @cached_property
    def factors(self) -> list[tuple[int, int]]:
        """The shapes of all factors of adapters."""
        return [shape for adapter in self.adapted.values() for shape in adapter.factors]

    @cached_property
    def gradient_numbers(self) -> int:
        """All numbers that have a gradient."""
        own = sum(weight.count for weight in self.weights if weight.name in self.trained)
        return own + sum(rows * columns for rows, columns in self.factors)

    @cached_property
    def quantized_numbers(self) -> int:
        """All numbers in NF4."""
        return sum(weight.count for weight in self.weights if weight.name in self.quantized)

    @cached_property
    def _by_module(self) -> dict[str, list[Weight]]:
        found: dict[str, list[Weight]] = {}
        for weight in self.weights:
            found.setdefault(weight.module, []).append(weight)
        return found

    def layer(self, path: str) -> Layer:
        """The layer at ``path``; an output layer that shares the embedding's weight included."""
        if path not in self._layers:
            self._layers[path] = self._make_layer(path)
        return self._layers[path]

    def _make_layer(self, path: str) -> Layer:
        bias, matrix = 0, None
        for weight in self._by_module.get(path, ()):
            if weight.name.endswith(".bias"):
                bias = weight.count
            else:
                matrix = weight
        if matrix is None:  # tied to the embedding
            return Layer(0, 0, bias, self.trains_embedding)
        shape = matrix.shape if len(matrix.shape) > 1 else (1, *matrix.shape)
        adapter = self.adapted.get(matrix.name)
        return Layer(
            shape[-2],
            shape[-1],
            bias,
            matrix.name in self.trained,
            adapter.rank if adapter else 0,
            adapter is not None and adapter.reads,
            matrix.name in self.quantized,
        )

    @cached_property
    def paths(self) -> list[str]:
        """The layers of the model, in order."""
        return list(self._by_module)


def layers_by_block(numbers: Numbers, path: str) -> list[dict[str, Layer]]:
    """For each block of the stack at ``path``, its layers by their names inside of it."""
    blocks: dict[int, dict[str, Layer]] = {}
    prefix = f"{path}.layers."
    for module in numbers.paths:
        if module.startswith(prefix):
            number, _, rest = module[len(prefix) :].partition(".")
            blocks.setdefault(int(number), {})[rest] = numbers.layer(module)
    return [blocks[number] for number in sorted(blocks)]


def _is_on(weight: Weight, stage: Stage, tied: bool) -> bool:
    """Whether the first or the last stage of a pipeline has a weight that is of no block."""
    if weight.layer is not None:
        return True
    if stage == "first":
        return weight.name.startswith("model.") and not weight.name.endswith(_LAST_NORMS)
    return weight.kind != "embedding" or tied


def _part_of(weight: Weight, devices: int) -> Weight:
    """A device's part of a matrix; what is no matrix is whole everywhere."""
    if weight.kind == "other":
        return weight
    *stack, rows, columns = weight.shape
    return replace(weight, shape=(*stack, math.ceil(rows / devices), columns))
