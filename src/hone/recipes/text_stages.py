"""The run of a recipe that trains on text.

tokenizer/   trained on the text, or taken from where the recipe says
corpus/      the text as token ids, mapped into memory in training
train/       the loop's own checkpoints
checkpoint/  the trained model, a Hugging Face directory
eval/        what the model scores on the text that it was not trained on
metrics.jsonl, results.json, report.html, manifest.json, recipe.json
"""

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hone.core.errors import ConfigError, DataError
from hone.core.files import atomic_path, read_json, sha256_file, write_json
from hone.core.hub import find_checkpoint
from hone.core.progress import progress
from hone.core.seeds import derive_seed
from hone.data import Batch, PackedBatches
from hone.data.corpus import Corpus, encode_texts, write_corpus
from hone.data.denoising import Infilling, SpanCorruption
from hone.data.files import kind_of
from hone.data.masking import Masked
from hone.data.pretraining import Causal, Task, text_batches
from hone.data.rows import PLAIN_TEXT, Rows
from hone.parallel import Processes
from hone.plan import Plan
from hone.recipes.machine import find_device
from hone.recipes.manifest import run_manifest
from hone.recipes.run import HABITS
from hone.recipes.runner import RECIPE_FILE, Progress, Stage, run_stages
from hone.recipes.text_settings import Objective, TextRecipe
from hone.recipes.together import Together
from hone.text.tokenizer import Tokenizer
from hone.text.training import MASK, character_tokenizer, with_tokens

if TYPE_CHECKING:
    from hone.recipes.from_scratch import FromScratch

_HEADS: dict[Objective, Literal["causal", "masked", "seq2seq"]] = {
    "causal": "causal",
    "masked": "masked",
    "spans": "seq2seq",
    "infilling": "seq2seq",
}
# As many as T5 has: no text of a few thousand tokens has more dropped spans.
_SENTINELS = 100
# Held-out batches that a loss along the way is measured on; the score at the end is on all.
_EVALUATED = 16


def run_text_recipe(
    recipe: TextRecipe,
    out: Path,
    fresh: bool = False,
    processes: Processes | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Path:
    """Run what is not done yet of ``recipe`` in the folder ``out``; returns ``out``.

    Args:
        fresh: forget what an earlier run left in the folder.
        processes: those that train together, each of which calls this.
        on_plan: called with what training is predicted to take, before it begins.

    Raises:
        HoneError: a stage failed. What was finished is kept; the same call goes on from there.
    """
    processes = processes or Processes()
    work = TextWork(recipe, out, processes)
    together = Together(processes, work.train)
    if not processes.first:
        together.follow(out / "train")
        return out
    inputs = work.inputs()
    find_device(recipe.train.device)  # before any work is done in vain
    # What is measured along the way changes the weights where the best of them are taken.
    following = {"prompts"} if recipe.train.keep_best else {"prompts", "evaluate_every"}

    def dump(settings: Any, without: set[str] | None = None) -> dict[str, Any]:
        return settings.model_dump(mode="json", exclude=without)

    stages = [
        Stage(
            "tokenizer",
            {
                "inputs": inputs,
                "column": recipe.data.column,
                "for": recipe.train.objective,
                **dump(recipe.tokenizer),
            },
            work.tokenizer_stage,
        ),
        Stage("corpus", {}, work.corpus_stage),
        Stage(
            "train",
            {
                "data": dump(recipe.data),
                "model": dump(recipe.model),
                "train": dump(recipe.train, HABITS | following),
                "seed": recipe.seed,
            },
            together.train,
            in_place=True,
            check=lambda: on_plan(work.check()),
        ),
        Stage("eval", {}, work.evaluate),
    ]
    done = run_stages(
        stages, out, fresh=fresh, prepare=lambda: write_json(out / RECIPE_FILE, dump(recipe))
    )
    together.finish()
    work.finish(done, inputs)
    return out


class TextWork:
    """The stages of one run; each method writes its result into the folder that it is given."""

    def __init__(self, recipe: TextRecipe, out: Path, processes: Processes) -> None:
        self.recipe, self.out, self._processes = recipe, out, processes

    def inputs(self) -> dict[str, Any]:
        """Every text file with its hash.

        Raises:
            DataError: one of them cannot be read.
        """
        found = {}
        for file in self.recipe.data.text:
            try:
                found[file] = {"sha256": sha256_file(file)}
            except OSError as error:
                raise DataError(
                    f'Cannot read {file}, a "data.text" of the recipe: {error.strerror}.'
                ) from error
        return found

    def _texts(self) -> Iterator[str]:
        for file in self.recipe.data.text:
            name = "text" if kind_of(file) in PLAIN_TEXT else self.recipe.data.column
            rows = Rows(file, {"text": name})
            for number, row in rows:
                text = row["text"]
                if not isinstance(text, str):
                    raise DataError(
                        f'{rows.where(number)}: "{name}" must be a text, found {text!r:.60}.'
                    )
                yield text

    def tokenizer_stage(self, folder: Path) -> None:
        """Train the tokenizer on the text, or copy the one that the recipe names."""
        settings = self.recipe.tokenizer
        with progress("Tokenizer", 1, "tokenizers") as bar:
            if settings.path is not None:
                directory = Path(settings.path).expanduser()
                if not (directory / "tokenizer.json").is_file():
                    directory = find_checkpoint(settings.path)
                tokenizer = Tokenizer.load(directory)
            elif settings.kind == "characters":
                tokenizer = character_tokenizer(self._texts())
            else:
                tokenizer = Tokenizer.train(self._texts(), settings.vocab_size)
            self._with_needed(tokenizer).save(folder)
            bar.advance()

    def _with_needed(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokens that the objective asks for, which the text does not have."""
        objective = self.recipe.train.objective
        if objective in ("masked", "infilling") and tokenizer.mask_id is None:
            return with_tokens(tokenizer, mask=MASK)
        if objective == "spans" and tokenizer.token_to_id("<extra_id_0>") is None:
            names = [f"<extra_id_{number}>" for number in range(_SENTINELS)]
            return with_tokens(tokenizer, additional=names)
        return tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return Tokenizer.load(self.out / "tokenizer")

    def corpus_stage(self, folder: Path) -> None:
        """Write the text as token ids."""
        tokenizer = self.tokenizer
        with progress("Tokens", 1, "corpora") as bar:
            ids = encode_texts(self._texts(), tokenizer)
            write_corpus(folder / "tokens", ids, tokenizer.vocab_size, tokenizer.eos_id)
            bar.advance()

    @cached_property
    def _corpora(self) -> tuple[Corpus, Corpus]:
        """What is trained on, and what is not."""
        corpus = Corpus.open(self.out / "corpus" / "tokens")
        return corpus.split(self.recipe.data.held_out, by_document=corpus.documents > 20)

    def _task(self) -> Task:
        settings, tokenizer = self.recipe.train, self.tokenizer
        start = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.bos_id
        if settings.objective == "causal":
            return Causal()
        if settings.objective == "masked":
            share = settings.share or 0.15
            return Masked.of(tokenizer, share=share, whole_words=settings.whole_words)
        if start is None:
            raise ConfigError("The tokenizer has no padding token for answers to begin with.")
        if settings.objective == "spans":
            return SpanCorruption.of(tokenizer, start, share=settings.share or 0.15)
        return Infilling.of(tokenizer, start, share=settings.share or 0.3)

    def _batches(self, corpus: Corpus, tokens: int, seed: int) -> PackedBatches:
        cut: Literal["documents", "windows"] = "windows"
        if self.recipe.data.separate and corpus.documents > 1:
            cut = "documents"
        return text_batches(corpus, self._task(), self._length, tokens, seed, cut=cut)

    @property
    def _length(self) -> int:
        return self.recipe.train.length or self.recipe.model.context

    def _held_out(self) -> list[Batch]:
        try:
            batches = self._batches(self._corpora[1], 8192, seed=0)
        except DataError as error:
            raise DataError(
                f'The recipe\'s "data.held_out" is {self.recipe.data.held_out}, which is '
                f"{len(self._corpora[1]):,} tokens, too few for one piece of {self._length}. Raise "
                'it, give more text, or make "train.length" smaller.'
            ) from error
        return [batches.at(step) for step in range(batches.batches_per_epoch)]

    @cached_property
    def _training(self) -> "FromScratch":
        from hone.recipes.architecture import model_config
        from hone.recipes.from_scratch import FromScratch

        recipe, settings = self.recipe, self.recipe.train
        config = model_config(recipe.model, self.tokenizer, _HEADS[settings.objective])
        seed = derive_seed(recipe.seed, "batches")
        batches = self._batches(self._corpora[0], settings.tokens_per_step, seed)
        return FromScratch(config, batches, settings, recipe.seed, self._processes)

    def check(self) -> Plan:
        """Refuse a training that cannot be done, before an earlier one is replaced."""
        self._held_out()
        return self._training.check()

    def train(self, folder: Path) -> None:
        """Train the model; unfinished work is found in ``folder`` and taken up again."""
        from hone.evals.held_out import held_out_loss
        from hone.models import save_checkpoint
        from hone.recipes.finetune.answers import continue_prompts
        from hone.recipes.trackers import make_trackers

        recipe, tokenizer = self.recipe, self.tokenizer
        if self._processes.first and not (folder / "checkpoints").exists():
            shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        held_out = self._held_out()[:_EVALUATED]

        def evaluate(model: Any, step: int) -> Mapping[str, Any]:
            figures: dict[str, Any] = {"loss": held_out_loss(model, held_out)}
            if recipe.train.prompts:
                prompts = recipe.train.prompts
                figures["samples"] = continue_prompts(model, tokenizer, None, prompts)
            return figures

        self._training.train(
            folder,
            lambda model: save_checkpoint(self.out / "checkpoint", model, tokenizer),
            evaluate=evaluate,
            trackers=make_trackers(recipe.trackers, folder, recipe.name),
        )

    def evaluate(self, folder: Path) -> None:
        """Score what was written on the held-out text."""
        from hone.evals.held_out import held_out_scores
        from hone.models import load_model

        device = find_device(self.recipe.train.device)
        model = load_model(self.out / "checkpoint", "float32", device, head=None)
        write_json(folder / "scores.json", held_out_scores(model, self._held_out()))

    def finish(self, done: Progress, inputs: dict[str, Any]) -> None:
        """Write ``manifest.json``, ``metrics.jsonl``, ``report.html`` and ``results.json``."""

        from hone.evals.formatting import duration, quantity
        from hone.evals.held_out import RISING
        from hone.evals.training_report import TrainingReport, read_metrics, write_training_report
        from hone.recipes.from_scratch import split_memory

        out, recipe = self.out, self.recipe
        trained, scores = read_json(out / "train/result.json"), read_json(out / "eval/scores.json")
        predicted_parts, memory = split_memory(trained)
        checkpoint = out / "checkpoint"
        files = sorted(checkpoint.glob("*.safetensors"))
        manifest = run_manifest(out, inputs, files, done, recipe=recipe.model_dump(mode="json"))
        write_json(out / "manifest.json", manifest)
        with atomic_path(out / "metrics.jsonl") as temporary:
            shutil.copyfile(out / "train" / "metrics.jsonl", temporary)
        write_training_report(
            out / "report.html",
            TrainingReport(
                title=f"{recipe.name}: a {recipe.train.objective} model from scratch",
                summary=f"Trained on {', '.join(Path(file).name for file in inputs)}, and scored "
                "on the end of it.",
                scores={name: (None, value) for name, value in scores.items()},
                better=RISING,
                choices=(),
                metrics=read_metrics(out / "metrics.jsonl"),
                counts={
                    "Steps": f"{trained['steps']:,}",
                    "Trained tokens": quantity(trained["trained_tokens"]),
                    "Training": duration(trained["seconds"]),
                },
                memory=predicted_parts,
                predicted=memory["predicted_bytes"],
                measured=memory["measured_bytes"],
                settings=recipe.model_dump(mode="json")
                | {key: manifest[key] for key in ("inputs", "outputs", "machine", "libraries")},
                next_commands=self.next_commands(),
            ),
        )
        # Last, since a run with results is a finished one.
        pairs = {name: {"before": None, "after": value} for name, value in scores.items()}
        found = {"kind": "pretrain", "scores": pairs, "train": trained, "memory": memory}
        write_json(out / "results.json", found)

    def next_commands(self) -> list[str]:
        """What to type after the run."""
        if self.recipe.train.objective == "causal":
            return [shlex.join(["hone", "generate", str(self.out), "..."])]
        return [shlex.join(["hone", "finetune", str(self.out), "--data", "FILE"])]
