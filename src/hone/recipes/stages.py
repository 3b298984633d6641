"""What each stage of a Text2SQL recipe does, in the order in which a run does it."""

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.core.errors import DataError
from hone.core.files import atomic_path, read_json, sha256_file, write_json
from hone.core.progress import progress
from hone.core.seeds import derive_seed
from hone.data import PackedBatches, completion_sample
from hone.evals.charts import read_losses
from hone.evals.records import Scored, read_records, write_records
from hone.evals.report import ReportInputs, write_report
from hone.evals.summary import Variant, results
from hone.evals.text2sql import Scorer
from hone.recipes.assistant import PromptBuilder
from hone.recipes.questions import Question, make_questions, read_questions, write_questions
from hone.recipes.runner import Progress
from hone.recipes.settings import Recipe
from hone.sql import Database, Schema, open_database, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database
from hone.text.prompts import text2sql_completion
from hone.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hone.parallel import Processes
    from hone.plan import Plan
    from hone.recipes.from_scratch import FromScratch

SAMPLE = "sample"
SAMPLE_FILE = "shop.sqlite"
RECORDS = "records.jsonl"
CHECKPOINT = "checkpoint"
QUANTIZED = "int8"
GOALS = {"unseen_queries": 0.95, "unseen_phrasings": 0.85}


class Work:
    """The stages of one run; each method writes its result into the folder that it is given."""

    def __init__(self, recipe: Recipe, out: Path, processes: "Processes | None" = None) -> None:
        from hone.parallel import Processes

        self.recipe, self.out, self._processes = recipe, out, processes or Processes()

    def inputs(self) -> dict[str, Any]:
        """Every input file of the recipe with its hash.

        Raises:
            DataError: one of them cannot be read.
        """
        data = self.recipe.data
        files = {"database": data.database, "glossary": data.glossary, "examples": data.examples}
        found = {}
        for name, file in files.items():
            if file is None:
                continue
            if name == "database" and file == SAMPLE:
                found[name] = {"file": file}
                continue
            try:
                found[name] = {"file": file, "sha256": sha256_file(file)}
            except OSError as error:
                raise DataError(
                    f'Cannot read {file}, the "data.{name}" of the recipe: {error.strerror}.'
                ) from error
        return found

    @cached_property
    def database_path(self) -> Path:
        """The database that the recipe is about."""
        name = self.recipe.data.database
        return self.out / "database" / SAMPLE_FILE if name == SAMPLE else Path(name)

    def _schema(self) -> Schema:
        data = self.recipe.data
        sample = SAMPLE_GLOSSARY if data.database == SAMPLE else None
        return read_schema(self.database_path, data.glossary or sample)

    def _database(self) -> Database:
        return open_database(self.database_path)

    def database(self, folder: Path) -> None:
        """Make the sample database, or look at the one that was named."""
        if self.recipe.data.database == SAMPLE:
            with progress("Sample database", 1, "databases") as bar:
                write_sample_database(folder / SAMPLE_FILE)
                bar.advance()
        else:
            schema = self._schema()  # refuses here, before anything else is done
            write_json(folder / "schema.json", _overview(schema))

    def questions(self, folder: Path) -> None:
        """Write the training and held-out questions, prompts included."""
        with self._database() as database:
            train, held_out = make_questions(
                self.recipe.data, self.recipe.seed, database, self._schema()
            )
        write_questions(folder / "train.jsonl", train)
        write_questions(folder / "held_out.jsonl", held_out)

    def train_questions(self) -> list[Question]:
        """What the model is trained on."""
        return read_questions(self.out / "questions" / "train.jsonl")

    def held_out(self) -> list[Question]:
        """What it is scored on."""
        return read_questions(self.out / "questions" / "held_out.jsonl")

    def tokenizer(self, folder: Path) -> None:
        """Train a tokenizer on the training questions and queries."""
        questions = self.train_questions()
        with progress("Tokenizer", 1, "tokenizers") as bar:
            texts = (q.prompt + text2sql_completion(q.template) for q in questions)
            tokenizer = Tokenizer.train(texts, self.recipe.tokenizer.vocab_size)
            tokenizer.save(folder)
            bar.advance()

    def _batches(self, tokenizer: Tokenizer) -> PackedBatches:
        questions = self.train_questions()
        prompts = tokenizer.encode_batch([q.prompt for q in questions])
        completions = tokenizer.encode_batch([text2sql_completion(q.template) for q in questions])
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        assert bos is not None
        assert eos is not None
        samples = [
            completion_sample([bos, *prompt], [*completion, eos])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return PackedBatches(
            samples,
            self.recipe.train.tokens_per_step,
            derive_seed(self.recipe.seed, "batches"),
            max_length=self.recipe.model.context,
            drop_overlong=True,
            bucket_batches=1,  # a batch of one length is a batch of few kinds of question
        )

    @cached_property
    def _training(self) -> "FromScratch":
        from hone.recipes.architecture import model_config
        from hone.recipes.from_scratch import FromScratch

        recipe, tokenizer = self.recipe, Tokenizer.load(self.out / "tokenizer")
        config = model_config(recipe.model, tokenizer)
        batches = self._batches(tokenizer)
        return FromScratch(config, batches, recipe.train, recipe.seed, self._processes)

    def check(self) -> "Plan":
        """Refuse a training that cannot be done, before an earlier one is replaced."""
        return self._training.check()

    def train(self, folder: Path) -> None:
        """Train the model; unfinished work is found in ``folder`` and taken up again."""
        from hone.models import save_checkpoint

        if self._processes.first and not (folder / "checkpoints").exists():
            # Until this training ends there is no model, and least of all an older one.
            shutil.rmtree(self.out / CHECKPOINT, ignore_errors=True)
        tokenizer = Tokenizer.load(self.out / "tokenizer")
        self._training.train(
            folder,
            lambda model: save_checkpoint(self.out / CHECKPOINT, model, tokenizer),
            more={"dropped": self._training.batches.dropped},
        )

    def evaluate(self, folder: Path) -> None:
        """Answer every held-out question and score the answers."""
        self._evaluate(self.out / CHECKPOINT, folder, "Answering")

    def quantize(self, folder: Path) -> None:
        """Write the compressed checkpoint."""
        from hone.quant import quantize_checkpoint

        with progress("Compressing to int8", 1, "checkpoints") as bar:
            quantize_checkpoint(self.out / CHECKPOINT, folder)
            bar.advance()

    def evaluate_quantized(self, folder: Path) -> None:
        """The same questions with the compressed model."""
        self._evaluate(self.out / QUANTIZED, folder, "Answering with int8")

    def _evaluate(self, checkpoint: Path, folder: Path, label: str) -> None:
        import hone

        questions = self.held_out()
        schema = self._schema()
        with self._database() as database:
            lm = hone.load(checkpoint)
            build = PromptBuilder(database, schema)
            prompts = [build(question.question) for question in questions]
            # A prompt that leaves no room for an answer has none, and counts as wrong.
            room = lm.config.max_position_embeddings - 1
            ids = lm.tokenizer.encode_batch([prompt.text for prompt in prompts], True)
            fits = [len(prompt) < room for prompt in ids]
            most = self.recipe.eval.max_tokens
            params = [
                build.params(prompt, most) for prompt, fit in zip(prompts, fits, strict=True) if fit
            ]
            lm.row_counts()  # measured once, before the clock starts
            start = time.perf_counter()
            with progress(label, len(questions), "questions") as bar:
                results = lm.generate(
                    [prompt for prompt, fit in zip(ids, fits, strict=True) if fit],
                    params,
                    finished=lambda *_: bar.advance(),
                )
            seconds = time.perf_counter() - start
            scorer = Scorer([database], schema)
            texts = iter(result.text for result in results)
            written = [
                prompt.fill(next(texts)) if fit else ""
                for prompt, fit in zip(prompts, fits, strict=True)
            ]
            records = scorer.score_all(questions, written)
        write_records(folder / RECORDS, records)
        tokens = sum(len(result.token_ids) for result in results)
        write_json(
            folder / "speed.json",
            {
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds if seconds else 0.0,
                "bytes": sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")),
                "parameters": sum(p.numel() for p in lm.model.parameters()),
                "dtype": str(lm.model.dtype).removeprefix("torch."),
            },
        )

    def variants(self) -> tuple[Variant, ...]:
        """What the evaluation stages measured: the model, then its compressed form."""
        folders = ["eval"] if self.recipe.quantize is None else ["eval", "eval-int8"]
        found = []
        for folder in folders:
            speed = read_json(self.out / folder / "speed.json")
            found.append(
                Variant(
                    name=QUANTIZED if folder == "eval-int8" else speed["dtype"],
                    records=tuple(read_records(self.out / folder / RECORDS)),
                    bytes=speed["bytes"],
                    tokens_per_second=speed["tokens_per_second"],
                )
            )
        return tuple(found)

    def report(self, done: Progress, manifest: dict[str, Any]) -> None:
        """Write ``results.json``, ``metrics.jsonl`` and ``report.html`` into the run."""
        from hone.recipes.from_scratch import split_memory

        out = self.out
        speed = read_json(out / "eval" / "speed.json")
        variants = self.variants()
        trained = read_json(out / "train" / "result.json")
        unfinished = trained["seconds"] - done.stages["train"]["seconds"]
        seconds = {"train": trained["seconds"], "total": done.seconds + max(unfinished, 0.0)}
        figures = results(
            variants[0],
            variants[1] if len(variants) > 1 else None,
            seconds=seconds,
            parameters=speed["parameters"],
        )
        figures["memory"] = split_memory(trained)[1]
        write_json(out / "results.json", figures)
        with atomic_path(out / "metrics.jsonl") as temporary:
            shutil.copyfile(out / "train" / "metrics.jsonl", temporary)
        sample = next(iter(self.train_questions()))
        write_report(
            out / "report.html",
            ReportInputs(
                title=f"Text2SQL specialist: {self.recipe.name}",
                database=self.database_path.name,
                schema=self._schema(),
                variants=variants,
                losses=read_losses(out / "metrics.jsonl"),
                prompt=sample.prompt,
                completion=text2sql_completion(sample.template),
                decoding={"decoding": "greedy", "max_tokens": self.recipe.eval.max_tokens},
                stage_seconds={name: stage["seconds"] for name, stage in done.stages.items()},
                parameters=speed["parameters"],
                manifest=manifest,
                goals=GOALS,
                next_commands=next_commands(out, variants[0].records),
            ),
        )


def next_commands(out: Path, records: Sequence[Scored]) -> tuple[str, ...]:
    """What to type after a run: a question in each language that it can answer."""
    asked: dict[str, str] = {}
    for record in records:
        if record.ok:
            asked.setdefault(record.language, record.question)
    return tuple(shlex.join(["hone", "ask", str(out), text]) for text in asked.values())


def _overview(schema: Schema) -> dict[str, Any]:
    return {
        "tables": {
            table.name: [f"{column.name} {column.kind}" for column in table.columns]
            for table in schema.tables
        },
        "foreign_keys": [asdict(key) for key in schema.foreign_keys],
        "notes": list(schema.notes),
    }
