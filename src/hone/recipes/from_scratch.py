"""The training of a recipe's model from random weights: its device, its plan, its loop."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hone.core.files import write_json
from hone.core.seeds import derive_seed
from hone.data import PackedBatches
from hone.models import Model, make_model
from hone.models.config import ModelConfig
from hone.parallel import Processes
from hone.plan import Plan
from hone.plan.devices import read_size
from hone.recipes.forecast import (
    check_fits,
    expected_of,
    forecast,
    heaviest_step,
    largest_part,
)
from hone.recipes.machine import find_device, memory_budget
from hone.recipes.settings import TrainSettings
from hone.train import Tracker, TrainConfig, train
from hone.train.checkpoints import CheckpointStore
from hone.train.loop import Evaluate

RESULT = "result.json"


class FromScratch:
    """A model that does not exist yet, and how it is trained."""

    def __init__(
        self,
        config: ModelConfig,
        batches: PackedBatches,
        settings: TrainSettings,
        seed: int,
        processes: Processes,
    ) -> None:
        """Nothing is computed yet."""
        self._config, self.batches, self._settings = config, batches, settings
        self._seed, self._processes = seed, processes

    @cached_property
    def device(self) -> str:
        """``cpu`` or a GPU."""
        return find_device(self._settings.device)

    @cached_property
    def loop_settings(self) -> TrainConfig:
        """Those of the training loop."""
        known = {field.name for field in fields(TrainConfig)}
        values = self._settings.model_dump(include=known)
        return TrainConfig(**values, seed=self._seed)

    @cached_property
    def plan(self) -> Plan:
        """What the run is predicted to take."""
        count, asked = self._processes.count, self._settings.memory
        budget = memory_budget(self.device, read_size(asked, "train.memory") if asked else None)
        if self.device == "cpu":
            budget //= count  # the processes share it
        return forecast(
            self._config,
            largest_part(self.batches, self._settings.micro_batches * count, self._settings.steps),
            self.loop_settings,
            self.device,
            tokens_per_step=self._settings.tokens_per_step,
            budget=budget,
        )

    def _heaviest(self) -> int:
        settings, count = self._settings, self._processes.count
        return heaviest_step(self.batches, settings.micro_batches * count, settings.steps)

    def check(self) -> Plan:
        """The plan, of a run that fits.

        Raises:
            CapacityError: it does not; names the cheapest changes that would make it fit.
        """
        check_fits(self.plan, self.device)
        return self.plan

    def train(
        self,
        folder: Path,
        finish: Callable[[Model], None],
        *,
        evaluate: Evaluate | None = None,
        trackers: Sequence[Tracker] = (),
        more: dict[str, Any] | None = None,
    ) -> None:
        """Train, going on from what ``folder`` has; the first process calls ``finish`` with the
        model, and writes ``result.json`` with ``more`` in it.
        """
        first = self._processes.first
        model = make_model(self._config)
        model.initialise(derive_seed(self._seed, "weights"))
        model.to(self.device)
        result = train(
            model,
            self.batches,
            self.loop_settings,
            folder,
            processes=self._processes,
            expected=expected_of(self.plan, self._heaviest()) if first else None,
            trackers=trackers if first else (),
            evaluate=evaluate,
        )
        if not first:
            return
        if result.best_step is not None:
            _take_weights(model, folder, result.best_step)
        finish(model)
        predicted = {"predicted_bytes": self.plan.peak, "predicted_parts": dict(self.plan.parts)}
        write_json(folder / RESULT, asdict(result) | predicted | (more or {}))


@torch.no_grad()
def _take_weights(model: Model, folder: Path, step: int) -> None:
    """Put the weights that were evaluated at ``step`` into ``model``: their mean, if there is one.

    Raises:
        CheckpointError: the checkpoint of that step is damaged.
    """
    tensors = CheckpointStore(folder / "checkpoints", keep_last=1).at(step).tensors()
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors.get(f"mean/{name}", tensors[f"weights/{name}"]))


def split_memory(trained: dict[str, Any]) -> tuple[dict[str, int], dict[str, int | None]]:
    """Take the prediction out of a ``result.json``: its parts, and its sum beside the measured."""
    parts = trained.pop("predicted_parts", {})
    predicted = trained.pop("predicted_bytes", None)
    return parts, {"predicted_bytes": predicted, "measured_bytes": trained["tensor_bytes"]}
