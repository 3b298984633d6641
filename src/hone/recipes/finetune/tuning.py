"""A tuning run: choose, plan, score, train, score again, write the report.

before/      scores and answers of the model as it was
train/       the loop's own checkpoints
checkpoint/  the tuned model, or adapter/ its low-rank updates
after/       scores and answers of what was written
metrics.jsonl, results.json, report.html, manifest.json, recipe.json
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hone.core.errors import ConfigError, DataError
from hone.core.files import read_json, sha256_file, write_json
from hone.core.hub import find_checkpoint
from hone.core.seeds import derive_seed
from hone.data import PackedBatches
from hone.models.config_files import load_config
from hone.parallel import Processes
from hone.plan import Lora, Plan
from hone.recipes.finetune.choices import (
    WAY,
    Choices,
    Facts,
    Way,
    choose_budget,
    choose_length,
    choose_rate,
    choose_way,
)
from hone.recipes.finetune.datasets import TuningData, read_data, sample_pieces
from hone.recipes.finetune.options import FinetuneOptions
from hone.recipes.forecast import forecast, largest_part, precision_of
from hone.recipes.machine import device_name, find_device, memory_budget
from hone.recipes.runner import RECIPE_FILE, Stage, run_stages
from hone.recipes.together import Together
from hone.text.tokenizer import Tokenizer
from hone.train import TrainConfig

CHECKPOINT, ADAPTER = "checkpoint", "adapter"
_EVALUATIONS = 5
_WARMUP = 0.03  # of all steps
_RANK = 16
_PIECE = 4096  # positions of a sample where the model reads any number of them


class Tuning:
    """One tuning run in one folder."""

    def __init__(self, options: FinetuneOptions, out: Path, fresh: bool = False) -> None:
        """Look at the model; nothing is written.

        Args:
            fresh: forget what an earlier run left in ``out``.

        Raises:
            CheckpointError, ConfigError, DataError: they cannot be used, or not together.
        """
        self.options, self.out, self._fresh = options, out, fresh
        self.source = find_checkpoint(options.model)
        self.config = load_config(self.source)
        quantized = self.config.quantization_config or {}
        if quantized.get("quant_method") == "bitsandbytes" and options.method == "qlora":
            # The base is in NF4 already: updates beside it are what is meant.
            self.options = options.model_copy(update={"method": "lora"})
        elif quantized and options.method in ("full", "qlora"):
            raise ConfigError(
                f"{options.model} is quantized, so its own weights cannot be trained: use "
                "--method lora, or tune the original checkpoint."
            )
        self.tokenizer = Tokenizer.load(self.source)

    @cached_property
    def data(self) -> TuningData:
        """The samples, cut to the length that was chosen."""
        limit = self.options.max_length or self._context or _PIECE
        return read_data(self.options, self.config, self.tokenizer, limit, self.source)

    @property
    def _context(self) -> int | None:
        return None if self.config.extrapolates else self.config.max_position_embeddings

    @cached_property
    def choices(self) -> Choices:
        """Every setting that was not asked for, with its reason.

        Raises:
            CapacityError: the run fits in no way.
        """
        return self._chosen[0]

    @cached_property
    def plan(self) -> Plan:
        """What the run is predicted to take."""
        return self._chosen[1]

    @cached_property
    def _chosen(self) -> tuple[Choices, Plan]:
        options, choices = self._as_before(), Choices()
        facts = self._facts()
        choices.set("task", self.data.format.value, f"the columns of {Path(options.data).name}")
        if self.data.template is not None:
            choices.set("template", *self._template_choice())
        choose_length(choices, options, facts)
        lengths = self.data.lengths(choices["max_length"])
        choose_budget(choices, options, lengths)
        batches = self._batches(choices)
        most_parts = max(1, min(batches.at(0).n_samples, 64))
        plan = choose_way(
            choices,
            options,
            facts,
            most_parts,
            lambda way: self._predict(way, batches, choices),
        )
        for name in WAY:
            if getattr(options, name) != getattr(self.options, name):
                choices.set(name, choices[name], "as this run began")
        choose_rate(choices, options, facts)
        if choices["method"] != "full":
            rank = options.rank or _RANK
            choices.set("rank", rank, "asked for" if options.rank else "enough for most tasks")
            alpha = options.alpha or 2.0 * rank
            choices.set("alpha", alpha, "asked for" if options.alpha else "twice the rank")
        return choices, plan

    def _as_before(self) -> FinetuneOptions:
        """What is asked, and for a run that goes on, the way that it was begun in: what is free of
        the memory may be another today.
        """
        file = self.out / RECIPE_FILE
        try:
            before = read_json(file) if file.is_file() and not self._fresh else {}
        except DataError:
            return self.options
        if before.get("asked") != self._asked():
            return self.options
        values = {name: before["chosen"][name] for name in WAY if name in before["chosen"]}
        return self.options.model_copy(update=values)

    def _asked(self) -> dict[str, Any]:
        return self.options.model_dump(mode="json", exclude_defaults=True)

    def _template_choice(self) -> tuple[str, str]:
        own = self.tokenizer.chat_template == self.data.template
        return (
            ("the model's own", "serving writes conversations in the same way")
            if own
            else ("hone's", "the model has none that fits; it is saved with the result")
        )

    def _facts(self) -> Facts:
        return Facts(
            parameters=self.config.parameter_count,
            context=self._context,
            longest=min(self.data.longest, self._context or _PIECE),
            quantized=self.config.quantization_config is not None,
            budget=self._budget,
            device=device_name(self.device),
        )

    @cached_property
    def device(self) -> str:
        """``cpu`` or a GPU."""
        return find_device(self.options.device)

    @cached_property
    def _budget(self) -> int:
        return memory_budget(self.device, self.options.memory)

    def _batches(self, choices: Choices) -> PackedBatches:
        return self.data.batches(
            choices["tokens_per_step"],
            choices["max_length"],
            derive_seed(self.options.seed, "batches"),
        )

    def batches(self) -> PackedBatches:
        """Those of training."""
        return self._batches(self.choices)

    def _predict(self, way: Way, batches: PackedBatches, choices: Choices) -> Plan:
        config = replace(self.config, head=self.data.head)
        if self.data.labels:
            config = replace(config, labels=self.data.labels)
        options = self.options
        lora = Lora(
            rank=options.rank or _RANK,
            targets=tuple(part.strip() for part in options.targets.split(",")),
            dropout=options.lora_dropout > 0,
        )
        return forecast(
            config,
            largest_part(batches, way.micro_batches, choices["steps"]),
            self._settings(choices, way),
            self.device,
            tokens_per_step=choices["tokens_per_step"],
            method=way.method,
            lora=lora,
            budget=self._budget,
        )

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        return precision_of(self.options.precision, self.device)

    @property
    def settings(self) -> TrainConfig:
        """Those of the training loop."""
        return self._settings(self.choices, Way(**{name: self.choices[name] for name in WAY}))

    def _settings(self, choices: Choices, way: Way) -> TrainConfig:
        steps = choices["steps"]
        return TrainConfig(
            steps=steps,
            micro_batches=way.micro_batches,
            optimizer=way.optimizer,  # type: ignore[arg-type]
            # While a way is looked for there is no rate yet, and no plan depends on it.
            learning_rate=choices.values.get("learning_rate", 1e-5),
            schedule=self.options.schedule,
            warmup_steps=max(1, round(_WARMUP * steps)),
            weight_decay=0.01 if way.method == "full" else 0.0,
            beta2=0.999,
            precision=self.precision,  # type: ignore[arg-type]
            activation_checkpointing=way.activation_checkpointing,
            freeze=self.options.freeze,
            seed=self.options.seed,
            log_every=max(1, min(10, steps // 20)),
            checkpoint_every=max(10, steps // 10),
            evaluate_every=max(1, steps // _EVALUATIONS),
        )

    def run(self, processes: Processes | None = None) -> Path:
        """Do what is not done yet; returns the run's folder.

        Args:
            processes: those that train together, each of which calls this.

        Raises:
            HoneError: a stage failed. What was finished is kept; the same call goes on from there.
        """
        from hone.recipes.finetune.report import write_outcome
        from hone.recipes.finetune.work import TuningWork

        processes = processes or Processes()
        work = TuningWork(self, processes)
        together = Together(processes, work.train)
        if not processes.first:
            together.follow(self.out / "train")
            return self.out
        choices, inputs = self.choices, self._inputs()
        asked = self.options.model_dump(mode="json")
        scored = {"inputs": inputs, "data": asked["columns"], "max_length": choices["max_length"]}
        scored |= {"held_out": [asked["held_out"], asked["train_on"], asked["seed"]]}
        scored |= {"method": choices["method"]}
        habits = {"micro_batches", "activation_checkpointing"}
        settings = {k: v for k, v in choices.values.items() if k not in habits}
        without = {"model", "data", "memory", "device", "trackers", "prompts", *habits}
        trained = {k: v for k, v in asked.items() if k not in without} | settings
        stages = [
            Stage("before", scored, work.score_before),
            Stage("train", trained, together.train, in_place=True),
            Stage("after", {}, work.score_after),
        ]
        done = run_stages(stages, self.out, fresh=self._fresh, prepare=self._save_recipe)
        together.finish()
        write_outcome(self, done, inputs)
        return self.out

    def _inputs(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": {"path": self.options.model}
            | {file.name: sha256_file(file) for file in sorted(self.source.glob("*.safetensors"))}
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
            "kind": "finetune",
            "asked": self._asked(),
            "chosen": self.choices.values,
        }
        write_json(self.out / RECIPE_FILE, recipe)

    @property
    def result(self) -> Path:
        """What the run leaves: a checkpoint, or an adapter for the model that it began with."""
        return self.out / (CHECKPOINT if self.choices["method"] == "full" else ADAPTER)

    def sample(self) -> list[tuple[str, bool]]:
        """The first training sample in pieces, with whether each is trained."""
        if not self.data.train or self.data.head not in ("causal", "seq2seq"):
            return []
        return sample_pieces(self.data.train[0], self.tokenizer)

    def scores(self) -> dict[str, dict[str, float]]:
        """Before and after, by the stage's name."""
        return {name: read_json(self.out / name / "scores.json") for name in ("before", "after")}
