"""The questions stage: generated and human questions, made into training and held-out sets."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hone.core.errors import DataError, RequestError
from hone.core.files import write_text
from hone.core.progress import track
from hone.core.seeds import derive_seed
from hone.data import QuestionSql, read_examples, read_jsonl, split_groups, vary_examples
from hone.recipes.assistant import PromptBuilder
from hone.recipes.settings import DataSettings
from hone.sql import Database, Schema, canonical_sql, hardness
from hone.sql.questions import Example, generate

GENERATED_SPLITS = ("unseen_queries", "unseen_phrasings")
HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Question:
    """A question in the form that training and evaluation read it from disk."""

    question: str
    sql: str
    language: str
    pattern: str
    hardness: str
    split: str
    prompt: str
    gold: str
    """The reference query as it was given; ``sql`` is its canonical spelling."""


def make_questions(
    data: DataSettings, seed: int, database: Database, schema: Schema
) -> tuple[list[Question], list[Question]]:
    """The training questions and the held-out ones.

    Raises:
        DataError: there is nothing to train on, or nothing can be asked about the database.
    """
    train, held_out = _human(data, seed, database, schema)
    for split, count in (
        ("train", data.questions),
        *((split, data.held_out) for split in GENERATED_SPLITS),
    ):
        if data.questions and count:
            made = generate(
                schema, database, seed=seed, count=count, split=split, languages=data.languages
            )
            (train if split == "train" else held_out).extend(made)
    if not train:
        raise DataError("There is nothing to train on: no examples, and [data] questions is 0.")
    build = PromptBuilder(database, schema)
    return list(_prompted(train, build, "Linking values")), list(
        _prompted(held_out, build, "Linking held-out values")
    )


def _prompted(
    examples: Sequence[Example], build: PromptBuilder, label: str
) -> Iterator[Question]:
    prompts: dict[str, str] = {}
    for example in track(examples, label, unit="questions"):
        if example.question not in prompts:
            prompts[example.question] = build(example.question)
        yield Question(
            question=example.question,
            sql=example.sql,
            language=example.language,
            pattern=example.pattern,
            hardness=example.hardness,
            split=example.split,
            prompt=prompts[example.question],
            gold=example.sql,
        )


def _human(
    data: DataSettings, seed: int, database: Database, schema: Schema
) -> tuple[list[Example], list[Example]]:
    """The examples of a file, canonical, split, and varied by other values of the same columns."""
    if data.examples is None:
        return [], []
    examples = read_examples(
        data.examples, split_key=data.examples_split or "split", where=data.examples_where
    )
    train, held_out = _split(data, seed, examples)
    canonical = {example.sql: canonical_sql(example.sql, schema) for example in examples}

    def made(example: QuestionSql, split: str) -> Example:
        sql = canonical[example.sql]
        return Example(
            question=example.question,
            sql=sql,
            language=example.language,
            pattern="",
            hardness=hardness(sql),
            split=split,
        )

    build = PromptBuilder(database, schema)
    varied = vary_examples(
        [(example.question, canonical[example.sql]) for example in train],
        schema,
        build.index,
        copies=data.examples_copies,
        seed=derive_seed(seed, "examples"),
    )
    return [], []


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON object per line, whole or not at all."""
    lines = (json.dumps(asdict(question), ensure_ascii=False) for question in questions)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_questions(path: Path) -> list[Question]:
    """What :func:`write_questions` wrote."""
    if path.stat().st_size == 0:
        return []
    return [Question(**record) for record in read_jsonl(path)]
