"""What a training run may be told."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from hone.core.errors import ConfigError

Schedule = Literal["wsd", "cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
OptimizerName = Literal[
    "muon", "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"
]
ActivationCheckpointing = Literal["none", "blocks", "selective"]

# These decide what is written and shown, when to give up, or how the same gradients are computed.
_WITHOUT_EFFECT = (
    "max_bad_steps",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "log_every",
    "evaluate_every",
    "micro_batches",
    "workers",
    "activation_checkpointing",
    "checkpointed_blocks",
    "offload_activations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of :func:`hone.train.train`.

    Attributes:
        steps: optimizer steps; the only budget, so that the clock decides nothing.
        micro_batches: parts (of whole samples) that a step's batch is computed in, to save memory;
            the gradient is the same, but for what balances experts, which looks at a part.
        optimizer: ``muon`` trains hidden matrices with Muon and all else with AdamW; ``_8bit``
            keeps AdamW's state in blocks of 8 bits; ``paged`` keeps it in the host's memory;
            ``adafactor`` keeps sums of rows and columns only.
        learning_rate: peak rate of AdamW.
        muon_learning_rate: peak rate of Muon.
        schedule: after the warmup ``wsd`` stays at the peak and falls linearly over the last
            ``cooldown_fraction`` of the steps; ``linear`` and ``cosine`` fall all the way.
        warmup_steps: steps of linear rise.
        cooldown_fraction: see ``schedule``.
        final_fraction: the rate at the end, as a share of the peak.
        weight_decay: decoupled; for matrices, not for norms and biases.
        beta1, beta2, epsilon: AdamW's.
        muon_momentum: Muon's Nesterov momentum.
        grad_clip: largest global norm of the gradient; 0 for no limit.
        precision: ``bf16`` and ``fp16`` compute in 16 bits and keep float32 masters, ``fp16`` with
            a loss scale that follows the gradients; ``auto`` is bf16 where the processor has
            instructions for it.
        activation_checkpointing: what the backward pass computes again instead of keeping it:
            nothing, whole blocks, or all but the matrix products (``selective``).
        checkpointed_blocks: with ``blocks``, every so many of them are one piece.
        offload_activations: what is kept for the backward pass waits in the host's memory.
        freeze: patterns (``model.layers.0.*``) of names of weights that are not trained.
        workers: threads that make batches ahead of the step that needs them; 0 for none.
        ema: decay of a running mean of the weights, which takes their place at the end; 0 for none.
        seed: of torch's random stream during training (dropout).
        max_bad_steps: stop after so many steps in a row without a finite loss and gradient.
        log_every, checkpoint_every, evaluate_every: in steps; ``evaluate_every`` 0 is never.
        keep_last: checkpoints to keep.
        keep_best: keep the checkpoint with the lowest ``loss`` of an evaluation too.

    Raises:
        ConfigError: a value out of its range.
    """

    steps: int
    micro_batches: int = 1
    optimizer: OptimizerName = "muon"
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.02
    schedule: Schedule = "wsd"
    warmup_steps: int = 40
    cooldown_fraction: float = 0.5
    final_fraction: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    muon_momentum: float = 0.95
    grad_clip: float = 1.0
    precision: Precision = "auto"
    activation_checkpointing: ActivationCheckpointing = "none"
    checkpointed_blocks: int = 1
    offload_activations: bool = False
    freeze: tuple[str, ...] = ()
    workers: int = 0
    ema: float = 0.0
    seed: int = 0
    max_bad_steps: int = 10
    log_every: int = 10
    checkpoint_every: int = 100
    evaluate_every: int = 0
    keep_last: int = 2
    keep_best: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "max_bad_steps", "log_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("keep_last", "checkpointed_blocks"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "workers", "evaluate_every", "weight_decay", "grad_clip"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("learning_rate", "muon_learning_rate", "epsilon"):
            value = getattr(self, name)
            self._require(name, value > 0 and math.isfinite(value), "a number above 0")
        for name in ("beta1", "beta2", "muon_momentum", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("cooldown_fraction", "final_fraction"):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        patterns = not isinstance(self.freeze, str)
        self._require("freeze", patterns, 'a list of patterns, such as ["model.layers.0.*"]')
        for name, kinds in (
            ("schedule", Schedule),
            ("precision", Precision),
            ("optimizer", OptimizerName),
            ("activation_checkpointing", ActivationCheckpointing),
        ):
            known = get_args(kinds)
            self._require(name, getattr(self, name) in known, "one of " + ", ".join(known))

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(
                f"The training setting {name} must be {expected}, not {getattr(self, name)!r}."
            )

    def identity(self) -> dict[str, Any]:
        """The settings that the trained weights depend on, as JSON gives them back."""
        kept = {key: value for key, value in asdict(self).items() if key not in _WITHOUT_EFFECT}
        return {**kept, "freeze": list(self.freeze)}
