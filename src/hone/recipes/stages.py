"""What each stage of a Text2SQL recipe does, in the order in which a run does it."""

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.core.files import read_json, sha256_file, write_json
from hone.core.progress import progress
from hone.core.seeds import derive_seed
from hone.data import PackedBatches
from hone.recipes.assistant import Assistant
from hone.recipes.questions import Question, make_questions, read_questions, write_questions
from hone.recipes.runner import Progress
from hone.recipes.settings import Recipe
from hone.sql import Database, Schema, open_database, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database
from hone.text.prompts import text2sql_completion
from hone.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hone.models import LlamaConfig

SAMPLE_FILE = "shop.sqlite"
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}\nSQL:"


class Work:
    """The stages of one run; each method writes its result into the folder that it is given."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out

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
            builtin = name == "database" and file == "sample"
            found[name] = {"file": file, "sha256": None if builtin else sha256_file(file)}
        return found

    @cached_property
    def database_path(self) -> Path:
        """The database that the recipe is about."""
        name = self.recipe.data.database
        return self.out / "database" / SAMPLE_FILE if name == "sample" else Path(name)

    def _schema(self) -> Schema:
        data = self.recipe.data
        sample = SAMPLE_GLOSSARY if data.database == "sample" else None
        return read_schema(self.database_path, data.glossary or sample)

    def _database(self) -> Database:
        return open_database(self.database_path)

    def database(self, folder: Path) -> None:
        """Make the sample database, or look at the one that was named."""
        if self.recipe.data.database == "sample":
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

    def _train_questions(self) -> list[Question]:
        return read_questions(self.out / "questions" / "train.jsonl")

    def _held_out(self) -> list[Question]:
        return read_questions(self.out / "questions" / "held_out.jsonl")

    def tokenizer(self, folder: Path) -> None:
        """Train a tokenizer on the training questions and queries."""
        questions = self._train_questions()
        with progress("Tokenizer", 1, "tokenizers") as bar:
            texts = (q.prompt + text2sql_completion(q.sql) for q in questions)
            tokenizer = Tokenizer.train(texts, self.recipe.tokenizer.vocab_size, CHAT_TEMPLATE)
            tokenizer.save(folder)
            bar.advance()

    def _batches(self, tokenizer: Tokenizer) -> PackedBatches:
        questions = self._train_questions()
        prompts = tokenizer.encode_batch([q.prompt for q in questions])
        completions = tokenizer.encode_batch([text2sql_completion(q.sql) for q in questions])
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        assert bos is not None
        assert eos is not None
        samples = [
            ([bos, *prompt], [*completion, eos])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return PackedBatches(
            samples,
            self.recipe.train.tokens_per_step,
            derive_seed(self.recipe.seed, "batches"),
            max_length=self.recipe.model.context,
            drop_overlong=True,
        )

    def train(self, folder: Path) -> None:
        """Train the model; unfinished work is found in ``folder`` and taken up again."""
        from hone.models import LlamaForCausalLM
        from hone.train import TrainConfig, train

        tokenizer = Tokenizer.load(self.out / "tokenizer")
        batches = self._batches(tokenizer)
        model = LlamaForCausalLM(self._config(tokenizer))
        model.initialise(derive_seed(self.recipe.seed, "weights"))
        settings = self.recipe.train.model_dump(exclude={"tokens_per_step"})
        train(model, batches, TrainConfig(**settings, seed=self.recipe.seed), folder)
        model.save_weights(folder / "final.safetensors")

    def _config(self, tokenizer: Tokenizer) -> "LlamaConfig":
        from hone.models import LlamaConfig

        model = self.recipe.model
        return LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            head_dim=model.hidden // model.heads,
            max_position_embeddings=model.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
