"""A tuning run: choose, plan, score, train, score again, write the report.

before/      scores and answers of the model as it was
train/       the loop's own checkpoints
checkpoint/  the tuned model, or adapter/ its low-rank updates
after/       scores and answers of what was written
metrics.jsonl, results.json, report.html, manifest.json, recipe.json
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.core.errors import CheckpointError, ConfigError
from hone.core.files import atomic_dir, read_json, sha256_file, write_json
from hone.core.hub import find_checkpoint
from hone.core.seeds import derive_seed
from hone.data import Batch, PackedBatches
from hone.models.config import ModelConfig
from hone.models.config_files import load_config
from hone.recipes.finetune.choices import (
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
from hone.recipes.runner import RECIPE_FILE, Progress, Stage, run_stages
from hone.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hone.models import Model
    from hone.plan import Plan, TrainJob

CHECKPOINT, ADAPTER = "checkpoint", "adapter"
_ANSWERED, _ANSWER_TOKENS = 4, 96
_EVALUATIONS = 5
_RANK = 16


class Tuning:
    """One tuning run in one folder."""

    def __init__(self, options: FinetuneOptions, out: Path) -> None:
        """Look at the model and the data; nothing is written.

        Raises:
            CheckpointError, ConfigError, DataError: they cannot be used, or not together.
        """
        self.options, self.out = options, out
        self.source = find_checkpoint(options.model)
        self.config = load_config(self.source)
        if self.config.quantization_config and options.method in ("full", "qlora"):
            raise ConfigError(
                f"{options.model} is quantized, so its own weights cannot be trained: use "
                "--method lora, or tune the original checkpoint."
            )
        self.tokenizer = Tokenizer.load(self.source)

    @cached_property
    def data(self) -> TuningData:
        """The samples, cut to the length that was chosen."""
        limit = self.options.max_length or self._context
        return read_data(self.options, self.config, self.tokenizer, limit)

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
    def plan(self) -> "Plan":
        """What the run is predicted to take."""
        return self._chosen[1]

    @cached_property
    def _chosen(self) -> "tuple[Choices, Plan]":
        options, choices = self.options, Choices()
        limit = self._context or 1 << 30
        facts = self._facts(self.data.lengths(options.max_length or min(limit, 512)))
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
            lambda way: self._predict(self._job(way, batches, choices)),
        )
        choose_rate(choices, options, facts)
        if choices["method"] != "full":
            rank = options.rank or _RANK
            choices.set("rank", rank, "asked for" if options.rank else "enough for most tasks")
            alpha = options.alpha or 2.0 * rank
            choices.set("alpha", alpha, "asked for" if options.alpha else "twice the rank")
        return choices, plan

    def _template_choice(self) -> tuple[str, str]:
        own = self.tokenizer.chat_template == self.data.template
        return (
            ("the model's own", "serving writes conversations in the same way")
            if own
            else ("hone's", "the model has none that fits; it is saved with the result")
        )

    def _facts(self, lengths: Any) -> Facts:
        from hone.recipes.finetune.machine import device_name

        return Facts(
            parameters=self.config.parameter_count,
            context=self._context,
            lengths=lengths,
            quantized=self.config.quantization_config is not None,
            budget=self._budget,
            device=device_name(self.device),
        )

    @cached_property
    def device(self) -> str:
        """``cpu`` or a GPU."""
        from hone.recipes.finetune.machine import find_device

        return find_device(self.options.device)

    @cached_property
    def _budget(self) -> int:
        from hone.recipes.finetune.machine import memory_budget

        return memory_budget(self.device, self.options.memory)

    def _batches(self, choices: Choices) -> PackedBatches:
        return self.data.batches(
            choices["tokens_per_step"],
            choices["max_length"],
            derive_seed(self.options.seed, "batches"),
        )

    def _predict(self, job: "TrainJob") -> "Plan":
        from hone.plan import plan
        from hone.recipes.finetune.machine import plan_device

        config = replace(self.config, head=self.data.head)
        if self.data.labels:
            config = replace(config, labels=self.data.labels)
        return plan(config, job, plan_device(self.device, self._budget))

    def _job(self, way: Way, batches: PackedBatches, choices: Choices) -> "TrainJob":
        """The largest micro-batch of the first epoch, as the planner sees it."""
        from hone.plan import Lora, TrainJob

        part = largest_part(batches, way.micro_batches)
        precision = self._precision
        sources = () if part.source_cu_seqlens is None else _lengths(part.source_cu_seqlens)
        trained = part.n_trained if part.targets_B is None else None
        return TrainJob(
            lengths=_lengths(part.cu_seqlens),
            source_lengths=sources,
            trained=trained,
            micro_batches=way.micro_batches,
            tokens=choices["steps"] * choices["tokens_per_step"],
            method=way.method,
            optimizer=way.optimizer,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            activation_checkpointing=way.activation_checkpointing,
            freeze=self.options.freeze,
            lora=Lora(
                rank=self.options.rank or _RANK,
                targets=tuple(self.options.targets.split(",")),
                dropout=self.options.lora_dropout > 0,
            ),
        )

    @property
    def _precision(self) -> str:
        import torch

        from hone.kernels import preferred_dtype

        if self.options.precision != "auto":
            return self.options.precision
        return "bf16" if preferred_dtype(self.device) == torch.bfloat16 else "fp32"

    def run(self, fresh: bool = False) -> Path:
        """Do what is not done yet; returns the run's folder.

        Raises:
            HoneError: a stage failed. What was finished is kept; the same call goes on from there.
        """
        choices, inputs = self.choices, self._inputs()
        asked = self.options.model_dump(mode="json")
        scored = {"inputs": inputs, "data": asked["columns"], "max_length": choices["max_length"]}
        scored |= {"held_out": [asked["held_out"], asked["train_on"], asked["seed"]]}
        habits = {"micro_batches", "activation_checkpointing"}
        settings = {k: v for k, v in choices.values.items() if k not in habits}
        without = {"model", "data", "memory", "device", "trackers", *habits}
        trained = {k: v for k, v in asked.items() if k not in without} | settings
        stages = [
            Stage("before", scored, self._score_before),
            Stage("train", trained, self._train, in_place=True),
            Stage("after", {}, self._score_after),
        ]
        done = run_stages(stages, self.out, fresh=fresh, prepare=self._save_recipe)
        self._finish(done, inputs)
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
            "asked": self.options.model_dump(mode="json", exclude_defaults=True),
            "chosen": self.choices.values,
        }
        write_json(self.out / RECIPE_FILE, recipe)

    @property
    def result(self) -> Path:
        """What the run leaves: a checkpoint, or an adapter for the model that it began with."""
        return self.out / (CHECKPOINT if self.choices["method"] == "full" else ADAPTER)

    def _held_out(self) -> list[Batch]:
        return self.data.held_out_batches(
            min(self.choices["tokens_per_step"], 8192), self.choices["max_length"]
        )

    def _load(self, for_training: bool) -> "Model":
        """The model as it was, with the head that the data needs."""
        import hone.quant
        from hone.models import load_model

        labels = self.data.labels or None
        quantize = None
        if self.choices["method"] == "qlora":

            def quantize(model: "Model", kept: Collection[str]) -> None:
                hone.quant.quantize_nf4_model(model, kept=kept)

        full = for_training and self.choices["method"] == "full"
        dtype = "float32" if full or self._precision == "fp32" else "bfloat16"
        if self._precision == "fp16" and not full:
            dtype = "float16"
        model = load_model(
            self.source, dtype, self.device, self.data.head, labels, quantize=quantize
        )
        if model.config.problem != self.data.problem and labels:
            model.config = replace(model.config, problem=self.data.problem)  # type: ignore[arg-type]
        return model

    def _score_before(self, folder: Path) -> None:
        self._score(self._load(for_training=False), folder)

    def _score_after(self, folder: Path) -> None:
        self._score(self._load_result(), folder)

    def _load_result(self) -> "Model":
        if self.choices["method"] == "full":
            from hone.models import load_model

            dtype = "float32" if self._precision == "fp32" else "auto"
            return load_model(self.result, dtype, self.device, self.data.head)
        from hone.adapters import load_adapter

        model = self._load(for_training=False)
        load_adapter(model, self.result)
        return model

    def _score(self, model: "Model", folder: Path) -> None:
        from hone.evals.held_out import held_out_scores

        write_json(folder / "scores.json", held_out_scores(model, self._held_out()))
        write_json(folder / "answers.json", self._answers(model))

    def _answers(self, model: "Model") -> list[dict[str, str]]:
        """What the model writes for the first held-out prompts."""
        from hone.recipes.finetune.answers import answer_samples

        if self.data.head not in ("causal", "seq2seq") or self.data.corpora is not None:
            return []
        samples = self.data.held_out[:_ANSWERED]
        return answer_samples(
            model, self.tokenizer, self.source, samples, self.data.end_ids, _ANSWER_TOKENS
        )

    def _train(self, folder: Path) -> None:
        """Train, and write what came of it; unfinished work in ``folder`` is taken up again."""
        from hone.evals.held_out import held_out_loss
        from hone.recipes.finetune.answers import continue_prompts
        from hone.recipes.trackers import make_trackers
        from hone.train import Contrastive, Expected, TrainConfig, train

        if not (folder / "checkpoints").exists():
            # Until this training ends there is no model, and least of all an older one.
            for name in (CHECKPOINT, ADAPTER):
                shutil.rmtree(self.out / name, ignore_errors=True)
        choices, options = self.choices, self.options
        model = self._load(for_training=True)
        if choices["method"] != "full":
            from hone.adapters import add_adapter

            add_adapter(model, self._lora(), seed=derive_seed(options.seed, "adapter"))
        steps = choices["steps"]
        config = TrainConfig(
            steps=steps,
            micro_batches=choices["micro_batches"],
            optimizer=choices["optimizer"],
            learning_rate=choices["learning_rate"],
            schedule=options.schedule,
            warmup_steps=max(1, round(0.03 * steps)),
            weight_decay=0.0 if choices["method"] != "full" else 0.01,
            beta2=0.999,
            precision=self._precision,  # type: ignore[arg-type]
            activation_checkpointing=choices["activation_checkpointing"],
            freeze=options.freeze,
            seed=options.seed,
            log_every=max(1, min(10, steps // 20)),
            checkpoint_every=max(10, steps // 10),
            evaluate_every=max(1, steps // _EVALUATIONS),
        )
        held_out = self._held_out()

        def evaluate(model: Any, step: int) -> Mapping[str, Any]:
            figures: dict[str, Any] = {"loss": held_out_loss(model, held_out)}
            if options.prompts:
                written = continue_prompts(model, self.tokenizer, self.source, options.prompts)
                figures["samples"] = written
            return figures

        expected = Expected(
            self.plan.flops_per_token,
            self.plan.device.flops(self._precision != "fp32"),
            self.plan.peak,
        )
        result = train(
            model,
            self._batches(choices),
            config,
            folder,
            objective=Contrastive(options.temperature) if self.data.contrastive else None,
            expected=expected,
            trackers=make_trackers(options.trackers, folder, self.out.name),
            evaluate=evaluate,
        )
        self._save(model)
        write_json(folder / "result.json", asdict(result))

    def _lora(self) -> Any:
        from hone.adapters import LoraConfig

        options = self.options
        targets: str | tuple[str, ...] = options.targets
        if "," in options.targets:
            targets = tuple(part.strip() for part in options.targets.split(","))
        elif options.targets.isidentifier():
            targets = (options.targets,)
        return LoraConfig(
            r=self.choices["rank"],
            alpha=self.choices["alpha"],
            dropout=options.lora_dropout,
            targets=targets,
            dora=options.dora,
            rslora=options.rslora,
            base=_base_name(options.model, self.source),
        )

    def _save(self, model: "Model") -> None:
        """The checkpoint or the adapter, with the tokenizer and the template that it was trained
        with, and with what ends its answers.
        """
        import torch

        from hone.models import save_checkpoint

        tokenizer = Tokenizer(
            self.tokenizer.backend,
            self.tokenizer.config,
            self.tokenizer.chat_templates
            | ({"default": self.data.template} if self.data.template else {}),
        )
        ends = self._end_ids(model.config)
        generation = {"eos_token_id": ends} if ends else None
        if self.choices["method"] == "full":
            if self.config.dtype in ("bfloat16", "float16"):
                model.to(getattr(torch, self.config.dtype))
            save_checkpoint(self.result, model, tokenizer, generation)
            return
        from hone.adapters import save_adapter

        with atomic_dir(self.result) as temporary:
            save_adapter(model, temporary / "files")
            for file in (temporary / "files").iterdir():
                file.rename(temporary / file.name)
            (temporary / "files").rmdir()
            tokenizer.save(temporary)
            if generation:
                write_json(temporary / "generation_config.json", generation)

    def _end_ids(self, config: ModelConfig) -> list[int]:
        """What ended the model's answers before, and what it was trained to end them with."""
        if self.data.head not in ("causal", "seq2seq"):
            return []
        known = config.eos_token_id
        before = [] if known is None else [known] if isinstance(known, int) else list(known)
        return [*before, *(index for index in self.data.end_ids if index not in before)]

    def _finish(self, done: Progress, inputs: dict[str, Any]) -> None:
        from hone.recipes.finetune.report import write_outcome

        write_outcome(self, done, inputs)

    def sample(self) -> list[tuple[str, bool]]:
        """The first training sample in pieces, with whether each is trained."""
        if not self.data.train or self.data.head not in ("causal", "seq2seq"):
            return []
        return sample_pieces(self.data.train[0], self.tokenizer)

    def scores(self) -> dict[str, dict[str, float]]:
        """Before and after, by the stage's name."""
        return {name: read_json(self.out / name / "scores.json") for name in ("before", "after")}


def largest_part(batches: PackedBatches, parts: int) -> Batch:
    """Of the first epoch's micro-batches the one that takes most memory."""
    heaviest: Batch | None = None
    for step in range(min(batches.batches_per_epoch, 200)):
        for part in batches.at(step).split(parts):
            if heaviest is None or _weight(part) > _weight(heaviest):
                heaviest = part
    if heaviest is None:
        raise CheckpointError("There is no batch to plan with.")
    return heaviest


def _weight(part: Batch) -> float:
    """About what a micro-batch takes: tokens, and pairs of them in attention."""
    lengths: Sequence[int] = _lengths(part.cu_seqlens)
    return part.n_tokens + sum(length**2 for length in lengths) / 256


def _lengths(bounds: Any) -> tuple[int, ...]:
    return tuple(int(b - a) for a, b in pairwise(bounds))


def _base_name(model: str, source: Path) -> str:
    """The model as an adapter's file names it: a hub's name as it is, a directory in full."""
    return model if model.startswith("hf://") else str(source.resolve())
