"""Medusa heads for a model, trained on a file: read, train, count what is right, choose a tree.

train/       the loop's own checkpoints
medusa/      the heads: medusa.safetensors and medusa.json
metrics.jsonl, results.json, manifest.json, recipe.json
"""

import shutil
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hone.core.config import Settings
from hone.core.errors import ConfigError
from hone.core.files import atomic_path, read_json, sha256_file, write_json
from hone.core.seeds import derive_seed
from hone.data import IGNORED, PackedBatches
from hone.engine.lm import LM, load
from hone.engine.speculation.medusa import FOLDER, MedusaFile, MedusaHeads, save_heads
from hone.engine.speculation.tree import choose_tree
from hone.recipes.finetune.choices import Choices, Facts, choose_budget, choose_length
from hone.recipes.finetune.datasets import TuningData, read_data
from hone.recipes.finetune.options import FinetuneOptions
from hone.recipes.forecast import precision_of
from hone.recipes.machine import device_name, find_device
from hone.recipes.manifest import run_manifest
from hone.recipes.runner import RECIPE_FILE, Stage, run_stages
from hone.recipes.settings import Positive
from hone.train import TrainConfig, train
from hone.train.medusa import MedusaTrainee, head_accuracies

# Guesses of a head that are counted, and nodes of the tree, of which an engine takes the first.
_GUESSES, _NODES = 10, 64
_WARMUP = 0.03  # of all steps
_PIECE = 4096  # positions of a sample where the model reads any number of them


class MedusaOptions(Settings):
    """A model, texts like those that it will write, and what is not to be chosen automatically."""

    model: str
    """A checkpoint, a run, an adapter, or a name on the hub."""
    data: str
    """A file, or ``hf://org/name[:split]``."""
    columns: dict[str, str] = Field(default_factory=dict)
    """A format's column names to those that the file has."""
    heads: Annotated[int, Field(ge=1, le=16)] = 4
    """How many tokens ahead are guessed."""
    held_out_data: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    train_on: Literal["all", "last"] = "all"
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    max_length: Annotated[int, Field(ge=3)] | None = None
    tokens_per_step: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The paper's for heads on a frozen model."""
    micro_batches: Positive = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0


class MedusaRun:
    """The training of heads in one folder."""

    def __init__(self, options: MedusaOptions, out: Path, fresh: bool = False) -> None:
        """Read the model and the data; nothing is written.

        Args:
            fresh: forget what an earlier run left in ``out``.

        Raises:
            CheckpointError, ConfigError, DataError: they cannot be used, or not together.
        """
        self.options, self.out, self._fresh = options, out, fresh
        self.device = find_device(options.device)
        precision = precision_of(options.precision, self.device)
        self._precision: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
        self.lm: LM = load(options.model, device=self.device, exact=False)
        if self.lm.config.mixer != "attention":
            raise ConfigError(
                f"{options.model} has a recurrent state, which cannot take guesses back; heads "
                "would be of no use."
            )
        self._asked = FinetuneOptions(
            **options.model_dump(exclude={"heads", "precision"}), precision=options.precision
        )

    @cached_property
    def data(self) -> TuningData:
        """The samples, cut to the length that was asked for or that the model reads."""
        config = self.lm.config
        context = None if config.extrapolates else config.max_position_embeddings
        limit = self.options.max_length or context or _PIECE
        found = read_data(self._asked, config, self.lm.tokenizer, limit, self.lm.path)
        if found.head not in ("causal", "seq2seq"):
            raise ConfigError(
                f"{self.options.data} is for {found.format.value}, which writes nothing; heads "
                "learn from texts, conversations, or prompts with completions."
            )
        return found

    @cached_property
    def choices(self) -> Choices:
        """Lengths and steps that were not asked for, each with its reason."""
        choices, config = Choices(), self.lm.config
        context = None if config.extrapolates else config.max_position_embeddings
        facts = Facts(
            parameters=config.parameter_count,
            context=context,
            longest=min(self.data.longest, context or _PIECE),
            quantized=config.quantization_config is not None,
            budget=0,
            device=device_name(self.device),
        )
        choices.set("task", self.data.format.value, f"the columns of {Path(self._asked.data).name}")
        choose_length(choices, self._asked, facts)
        choose_budget(choices, self._asked, self.data.lengths(choices["max_length"]))
        return choices

    @property
    def result(self) -> Path:
        """The folder of the heads."""
        return self.out / FOLDER

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns what ``results.json`` holds.

        Raises:
            HoneError: it failed. What was finished is kept; the same call goes on from there.
        """
        choices, options = self.choices, self.options
        inputs = self._inputs()
        settings = options.model_dump(mode="json", exclude={"model", "data", "device"})
        stage = Stage(
            "train", {"inputs": inputs, **settings, **choices.values}, self._train, in_place=True
        )
        done = run_stages([stage], self.out, fresh=self._fresh, prepare=self._save_recipe)
        with atomic_path(self.out / "metrics.jsonl") as temporary:
            shutil.copyfile(self.out / "train" / "metrics.jsonl", temporary)
        manifest = run_manifest(self.out, inputs, sorted(self.result.glob("*.safetensors")), done)
        write_json(self.out / "manifest.json", manifest)
        # Last, since a run with results is a finished one.
        results: dict[str, Any] = read_json(self.out / "train" / "result.json")
        write_json(self.out / "results.json", results)
        return results

    def _train(self, folder: Path) -> None:
        shutil.rmtree(self.result, ignore_errors=True)
        options, choices, config = self.options, self.choices, self.lm.config
        heads = MedusaHeads(options.heads, config.hidden_size).to(self.device)
        heads.initialise(derive_seed(options.seed, "heads"))
        trainee = MedusaTrainee(self.lm.model, heads)
        held_out = self.data.held_out_batches(
            max(choices["tokens_per_step"], choices["max_length"]), choices["max_length"]
        )
        before = head_accuracies(trainee, held_out, _GUESSES)
        found = train(
            trainee,
            self._batches(),
            self._settings(),
            folder,
            label="Training heads",
        )
        accuracies = head_accuracies(trainee, held_out, _GUESSES)
        tree = choose_tree(accuracies, _NODES)
        if not tree.paths:
            raise ConfigError(
                "The heads guess nothing right on held-out texts: train them for longer, on texts "
                "like those that the model writes."
            )
        about = MedusaFile(
            options.heads, config.hidden_size, config.vocab_size, options.model, accuracies, tree
        )
        save_heads(self.result, heads, about)
        write_json(
            folder / "result.json",
            {
                "kind": "medusa",
                "scores": {
                    f"head {number}": {"before": old[0], "after": new[0]}
                    for number, (old, new) in enumerate(zip(before, accuracies, strict=True), 1)
                },
                "commonest": self._commonest(held_out),
                "accuracies": accuracies,
                "expected_tokens": {
                    str(nodes): 1 + sum(tree.worth[:nodes])
                    for nodes in (4, 8, 16, 32, 64)
                    if nodes <= len(tree.worth)
                },
                "train": asdict(found),
                "result": self.result.name,
            },
        )

    def _batches(self) -> PackedBatches:
        seed = derive_seed(self.options.seed, "batches")
        return self.data.batches(self.choices["tokens_per_step"], self.choices["max_length"], seed)

    def _settings(self) -> TrainConfig:
        steps, options = self.choices["steps"], self.options
        return TrainConfig(
            steps=steps,
            micro_batches=options.micro_batches,
            optimizer="adamw",
            learning_rate=options.learning_rate,
            schedule="cosine",
            warmup_steps=max(1, round(_WARMUP * steps)),
            weight_decay=0.0,
            beta2=0.999,
            precision=self._precision,
            seed=options.seed,
            log_every=max(1, min(10, steps // 20)),
            checkpoint_every=max(10, steps // 10),
        )

    @staticmethod
    def _commonest(held_out: list[Any]) -> float:
        """How often the commonest token would be right: what any head must do better than."""
        labels = np.concatenate([batch.labels_N for batch in held_out])
        labels = labels[labels != IGNORED]
        return float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0

    def _inputs(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": {"path": self.options.model}
            | {x.name: sha256_file(x) for x in sorted(self.lm.path.glob("*.safetensors"))}
        }
        for name in ("data", "held_out_data"):
            file = getattr(self.options, name)
            if file is not None:
                found[name] = {"path": file}
                if not file.startswith("hf://"):
                    found[name]["sha256"] = sha256_file(Path(file).expanduser())
        return found

    def _save_recipe(self) -> None:
        recipe = {
            "name": self.out.name,
            "kind": "medusa",
            "asked": self.options.model_dump(mode="json", exclude_defaults=True),
            "chosen": self.choices.values,
        }
        write_json(self.out / RECIPE_FILE, recipe)
