"""What a user may ask of a tuning run; whatever is not asked is chosen."""

from typing import Annotated, Literal

from pydantic import Field

from hone.core.config import Settings
from hone.recipes.settings import OptimizerName, Positive

Method = Literal["full", "lora", "qlora"]
Savers = Literal["none", "blocks", "selective"]


class FinetuneOptions(Settings):
    """A tuning run: a model, its data, and what is not to be chosen automatically.

    ``None`` stands for a choice that hone makes and explains.
    """

    model: str
    """A checkpoint, a run, or a name on the hub."""
    data: str
    """A file, or ``hf://org/name[:split]``."""
    columns: dict[str, str] = Field(default_factory=dict)
    """A format's column names to those that the file has."""
    method: Method | None = None
    held_out_data: str | None = None
    """A file that is only scored on; else a part of ``data`` is kept from training."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of ``data`` that is only scored on."""
    train_on: Literal["all", "last"] = "all"
    """Which of a conversation's answers are trained."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    tokens_per_step: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    rank: Positive | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str = "all-linear"
    """Layers with adapters: ``all-linear``, names with commas between, or a pattern."""
    dora: bool = False
    rslora: bool = False
    optimizer: OptimizerName | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batches: Positive | None = None
    activation_checkpointing: Savers | None = None
    freeze: tuple[str, ...] = ()
    memory: Positive | None = None
    """Bytes that the run may take; else what the device has free."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of the contrastive loss of pairs."""
    prompts: tuple[str, ...] = ()
    """Continued at every evaluation, into ``metrics.jsonl``."""
    trackers: tuple[Literal["tensorboard", "trackio"], ...] = ()
    device: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
