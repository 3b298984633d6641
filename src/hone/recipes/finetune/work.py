"""The stages of a tuning run: score, train, write, score again."""

import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import hone.quant
from hone.adapters import LoraConfig, add_adapter, load_adapter, save_adapter
from hone.core.files import atomic_dir, write_json
from hone.core.seeds import derive_seed
from hone.data import Batch
from hone.evals.held_out import held_out_loss, held_out_scores
from hone.models import Model, load_model, save_checkpoint
from hone.models.config import ModelConfig
from hone.parallel import Processes
from hone.recipes.finetune.answers import answer_samples, continue_prompts
from hone.recipes.finetune.tuning import ADAPTER, CHECKPOINT, Tuning
from hone.recipes.forecast import expected_of, heaviest_step
from hone.recipes.trackers import make_trackers
from hone.text.tokenizer import Tokenizer
from hone.train import Contrastive, train

_ANSWERED, _ANSWER_TOKENS = 4, 96
_SCORED_AT_ONCE = 8192  # tokens, where a run's micro-batches are not smaller


class TuningWork:
    """What each stage of a run does; each method writes into the folder that it is given."""

    def __init__(self, tuning: Tuning, processes: Processes) -> None:
        self.of, self._processes = tuning, processes

    def _held_out(self) -> list[Batch]:
        choices = self.of.choices
        tokens = min(choices["tokens_per_step"] // choices["micro_batches"], _SCORED_AT_ONCE)
        return self.of.data.held_out_batches(
            max(tokens, choices["max_length"]), choices["max_length"]
        )

    def _load(self, for_training: bool) -> Model:
        """The model as it was, with the head that the data needs."""

        labels = self.of.data.labels or None
        quantize = None
        if self.of.choices["method"] == "qlora":

            def quantize(model: Model, kept: Collection[str]) -> None:
                hone.quant.quantize_nf4_model(model, kept=kept)

        full = for_training and self.of.choices["method"] == "full"
        dtype = "float32" if full or self.of.precision == "fp32" else "bfloat16"
        if self.of.precision == "fp16" and not full:
            dtype = "float16"
        with warnings.catch_warnings():
            # That a head is new is what is wanted here.
            warnings.filterwarnings("ignore", message=".*must be trained")
            model = load_model(
                self.of.source, dtype, self.of.device, self.of.data.head, labels, quantize=quantize
            )
        if model.config.problem != self.of.data.problem and labels:
            model.config = replace(model.config, problem=self.of.data.problem)  # type: ignore[arg-type]
        return model

    def score_before(self, folder: Path) -> None:
        """Scores and answers of the model as it was."""
        self._score(self._load(for_training=False), folder)

    def score_after(self, folder: Path) -> None:
        """The same of what was written, read from its files."""
        self._score(self._load_result(), folder)

    def _load_result(self) -> Model:
        if self.of.choices["method"] == "full":
            dtype = "float32" if self.of.precision == "fp32" else "auto"
            return load_model(self.of.result, dtype, self.of.device, self.of.data.head)

        model = self._load(for_training=False)
        load_adapter(model, self.of.result)
        return model

    def _score(self, model: Model, folder: Path) -> None:

        write_json(folder / "scores.json", held_out_scores(model, self._held_out()))
        write_json(folder / "answers.json", self._answers(model))

    def _answers(self, model: Model) -> list[dict[str, str]]:
        """What the model writes for the first held-out prompts."""

        if self.of.data.head not in ("causal", "seq2seq") or self.of.data.corpora is not None:
            return []
        samples = self.of.data.held_out[:_ANSWERED]
        return answer_samples(
            model, self.of.tokenizer, self.of.source, samples, self.of.data.end_ids, _ANSWER_TOKENS
        )

    def train(self, folder: Path) -> None:
        """Train, and write what came of it; unfinished work in ``folder`` is taken up again."""

        if self._processes.first and not (folder / "checkpoints").exists():
            # Until this training ends there is no model, and least of all an older one.
            for name in (CHECKPOINT, ADAPTER):
                shutil.rmtree(self.of.out / name, ignore_errors=True)
        choices, options = self.of.choices, self.of.options
        model = self._load(for_training=True)
        if choices["method"] != "full":
            add_adapter(model, self._lora(), seed=derive_seed(options.seed, "adapter"))
        held_out = self._held_out()

        def evaluate(model: Any, step: int) -> Mapping[str, Any]:
            figures: dict[str, Any] = {"loss": held_out_loss(model, held_out)}
            if options.prompts:
                written = continue_prompts(
                    model, self.of.tokenizer, self.of.source, options.prompts
                )
                figures["samples"] = written
            return figures

        objective = None
        if self.of.data.contrastive:
            objective = Contrastive(options.temperature)
        batches, settings = self.of.batches(), self.of.settings
        heaviest = heaviest_step(batches, settings.micro_batches, settings.steps)
        result = train(
            model,
            batches,
            settings,
            folder,
            objective=objective,
            processes=self._processes,
            expected=expected_of(self.of.plan, heaviest),
            trackers=make_trackers(options.trackers, folder, self.of.out.name),
            evaluate=evaluate,
        )
        if self._processes.first:
            self._save(model)
            write_json(folder / "result.json", asdict(result))

    def _lora(self) -> LoraConfig:

        options = self.of.options
        targets: str | tuple[str, ...] = options.targets
        if "," in options.targets:
            targets = tuple(part.strip() for part in options.targets.split(","))
        elif options.targets.isidentifier():
            targets = (options.targets,)
        return LoraConfig(
            r=self.of.choices["rank"],
            alpha=self.of.choices["alpha"],
            dropout=options.lora_dropout,
            targets=targets,
            dora=options.dora,
            rslora=options.rslora,
            base=_base_name(options.model, self.of.source),
        )

    def _save(self, model: Model) -> None:
        """The checkpoint or the adapter, with the tokenizer and the template that it was trained
        with, and with what ends its answers.
        """

        tokenizer = Tokenizer(
            self.of.tokenizer.backend,
            self.of.tokenizer.config,
            self.of.tokenizer.chat_templates
            | ({"default": self.of.data.template} if self.of.data.template else {}),
        )
        ends = self._end_ids(model.config)
        generation = {"eos_token_id": ends} if ends else None
        if self.of.choices["method"] == "full":
            if self.of.config.dtype in ("bfloat16", "float16"):
                model.to(getattr(torch, self.of.config.dtype))
            save_checkpoint(self.of.result, model, tokenizer, generation)
            return

        with atomic_dir(self.of.result) as temporary:
            save_adapter(model, temporary / "files")
            for file in (temporary / "files").iterdir():
                file.rename(temporary / file.name)
            (temporary / "files").rmdir()
            tokenizer.save(temporary)
            if generation:
                write_json(temporary / "generation_config.json", generation)

    def _end_ids(self, config: ModelConfig) -> list[int]:
        """What ended the model's answers before, and what it was trained to end them with."""
        if self.of.data.head not in ("causal", "seq2seq"):
            return []
        known = config.eos_token_id
        before = [] if known is None else [known] if isinstance(known, int) else list(known)
        return [*before, *(index for index in self.of.data.end_ids if index not in before)]


def _base_name(model: str, source: Path) -> str:
    """The model as an adapter's file names it: a hub's name as it is, a directory in full."""
    return model if model.startswith("hf://") else str(source.resolve())
