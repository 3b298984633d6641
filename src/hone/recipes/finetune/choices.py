"""The settings of a tuning run that nobody asked for, each with its reason.

Learning rates follow what is common for tuning: about 2e-5 for all weights of a model of a billion
parameters, more for smaller ones, and ten times as much for low-rank updates (Biderman et al. 2024,
"LoRA Learns Less and Forgets Less"; Schulman et al. 2025, "LoRA Without Regret").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hone.core.errors import CapacityError
from hone.evals.formatting import quantity, size
from hone.plan import Plan
from hone.recipes.finetune.options import FinetuneOptions, Method, Savers

Lengths = npt.NDArray[np.int64]

_FULL_RATE_AT_A_BILLION = 2e-5
_LOWEST_RATE, _HIGHEST_RATE = 1e-5, 1e-3
_LORA_TIMES = 10
_MOST_EPOCHS, _FEW_EPOCHS = 3.0, 1.0
_MANY_SAMPLES = 30_000
_STEPS_WANTED = 200
_SAMPLES_PER_STEP = (8, 64)
_RANK = 16


@dataclass(frozen=True, slots=True)
class Facts:
    """What choices depend on.

    Attributes:
        parameters: of the model.
        context: the longest text that it reads; None for any.
        longest: positions of the longest sample, to train or to score.
        quantized: the checkpoint's weights are not floats, so that only adapters can be trained.
        budget: bytes that the run may take.
        device: for people.
    """

    parameters: int
    context: int | None
    longest: int
    quantized: bool
    budget: int
    device: str


@dataclass(slots=True)
class Choices:
    """Settings by name, in the order in which they were chosen, each with its reason."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: Any, reason: str) -> None:
        """Choose, or choose anew."""
        self.values[name], self.reasons[name] = value, reason

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and reason as people read them."""
        return [
            (name.replace("_", " "), _shown(self.values[name]), self.reasons[name])
            for name in self.values
        ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def choose_length(choices: Choices, asked: FinetuneOptions, facts: Facts) -> None:
    """The longest sample; the data was read with what the model reads as its limit."""
    if asked.max_length is not None:
        choices.set("max_length", asked.max_length, "asked for")
    elif facts.longest == facts.context:
        choices.set("max_length", facts.longest, "the model reads no more")
    else:
        choices.set("max_length", max(facts.longest, 2), "the longest sample: nothing is cut")


def choose_budget(choices: Choices, asked: FinetuneOptions, lengths: Lengths) -> None:
    """Tokens of a step, and steps."""
    count, total = len(lengths), int(lengths.sum())
    mean = total / count
    few = count < _MANY_SAMPLES
    epochs = asked.epochs or (_MOST_EPOCHS if few else _FEW_EPOCHS)
    if asked.steps is None:
        choices.set(
            "epochs",
            epochs,
            "asked for"
            if asked.epochs
            else f"{count:,} samples are {'few: each is seen again' if few else 'enough for one'}",
        )
    if asked.tokens_per_step is not None:
        tokens, reason = asked.tokens_per_step, "asked for"
    else:
        samples = count * epochs / _STEPS_WANTED
        samples = min(max(samples, _SAMPLES_PER_STEP[0]), _SAMPLES_PER_STEP[1], count)
        tokens = max(round(samples * mean), int(lengths.max()))
        reason = f"about {samples:.0f} samples of {mean:.0f} tokens"
        if tokens == int(lengths.max()) > round(samples * mean):
            reason = "the longest sample"
    choices.set("tokens_per_step", tokens, reason)
    if asked.steps is not None:
        choices.set("steps", asked.steps, "asked for")
    else:
        steps = max(1, round(total / tokens)) * epochs
        choices.set("steps", max(1, math.ceil(steps)), f"{epochs:g} epochs of {total:,} tokens")


def choose_rate(choices: Choices, asked: FinetuneOptions, facts: Facts) -> None:
    """The peak learning rate for the method that was chosen."""
    if asked.learning_rate is not None:
        choices.set("learning_rate", asked.learning_rate, "asked for")
        return
    full = _FULL_RATE_AT_A_BILLION * (1e9 / max(facts.parameters, 1)) ** 0.5
    full = min(max(full, _LOWEST_RATE), _HIGHEST_RATE)
    if choices["method"] == "full":
        reason = f"2e-5 at a billion parameters, more for {quantity(facts.parameters)}"
        choices.set("learning_rate", _two_digits(full), reason)
    else:
        rate = min(_LORA_TIMES * full, 2 * _HIGHEST_RATE)
        choices.set("learning_rate", _two_digits(rate), "ten times what all weights would take")


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


# The settings that decide how a run fits into memory.
WAY = ("method", "micro_batches", "activation_checkpointing", "optimizer")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to fit a run into memory."""

    method: Method
    micro_batches: int = 1
    activation_checkpointing: Savers = "none"
    optimizer: str = "adamw"


def ways(asked: FinetuneOptions, facts: Facts, most_parts: int) -> list[Way]:
    """All ways to compute a run, the one that costs least time first.

    Smaller micro-batches cost next to nothing, recomputed activations up to a third more work, and
    8-bit state a slower update. Another method comes last, since it trains another thing.
    """
    methods: Sequence[Method] = ("full", "lora", "qlora")
    if asked.method is not None:
        methods = (asked.method,)
    elif facts.quantized:
        methods = ("lora",)
    parts = [asked.micro_batches] if asked.micro_batches else _doubling(most_parts)
    found = []
    for method in methods:
        way = Way(method)
        way = replace(way, optimizer=asked.optimizer or way.optimizer)
        way = replace(way, activation_checkpointing=asked.activation_checkpointing or "none")
        tried = [replace(way, micro_batches=count) for count in parts]
        savers: tuple[Savers, ...] = ("selective", "blocks")
        if asked.activation_checkpointing is None:
            tried += [
                replace(way, micro_batches=parts[-1], activation_checkpointing=mode)
                for mode in savers
            ]
        if asked.optimizer is None and method == "full":
            tried.append(replace(tried[-1], optimizer="adamw_8bit"))
        found += tried
    return found


def _doubling(most: int) -> list[int]:
    counts = [1]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return counts


def choose_way(
    choices: Choices,
    asked: FinetuneOptions,
    facts: Facts,
    most_parts: int,
    predict: Callable[[Way], Plan],
) -> Plan:
    """The first way whose predicted peak fits; returns its plan.

    Raises:
        CapacityError: none does; the message names what would.
    """
    tried = ways(asked, facts, most_parts)
    first = plan = predict(tried[0])
    for way in tried:
        plan = first if way == tried[0] else predict(way)
        if plan.fits:
            fits = f"predicted peak {size(plan.peak)} of {size(facts.budget)}"
            _explain(choices, asked, facts, way, tried[0], fits, size(first.peak))
            return plan
    whose = "--memory allows" if asked.memory else f"{facts.device} has"
    changes = [f"{' and '.join(one.steps)} ({size(one.peak)})" for one in first.changes()]
    raise CapacityError(
        f"This run does not fit: it takes {size(first.peak)}, {size(plan.peak)} in the leanest way "
        f"that was left to choose, and {whose} {size(facts.budget)}. "
        + (f"What would fit: {'; '.join(changes)}." if changes else "Take a smaller model.")
    )


def _explain(
    choices: Choices,
    asked: FinetuneOptions,
    facts: Facts,
    way: Way,
    easiest: Way,
    fits: str,
    most: str,
) -> None:
    method_reason = "all weights fit: " + fits
    if asked.method is not None:
        method_reason = "asked for"
    elif facts.quantized:
        method_reason = "the checkpoint is quantized: only adapters can be trained"
    elif way.method != "full":
        method_reason = f"training all weights does not fit ({most}); {fits}"
    choices.set("method", way.method, method_reason)
    for name in ("micro_batches", "activation_checkpointing", "optimizer"):
        value, easy = getattr(way, name), getattr(easiest, name)
        given = getattr(asked, name) is not None
        reason = "asked for" if given else fits if value == easy else f"to save memory: {fits}"
        if name == "optimizer" and value == easy and not given:
            reason = "the usual one for tuning"
        choices.set(name, value, reason)
