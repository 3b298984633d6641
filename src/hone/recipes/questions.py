"""The questions stage: generated and human questions, made into training and held-out sets."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from hone.core.errors import DataError, RequestError
from hone.core.files import write_text
from hone.core.seeds import derive_seed
from hone.data import QuestionSql, read_examples, read_jsonl, split_groups, vary_examples
from hone.recipes.assistant import PromptBuilder
from hone.recipes.settings import DataSettings
from hone.sql import Database, Schema, canonical_sql, hardness
from hone.sql.questions import Example, Split, generate

GENERATED_SPLITS = ("unseen_queries", "unseen_phrasings")
# A query's time is counted in SQLite's steps, so that a busy machine makes the same questions.
STEPS, NO_CLOCK = 20_000_000, 600.0
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True, slots=True)
class Question:
    """A question in the form that training and evaluation read it from disk."""

    question: str
    sql: str
    language: str
    pattern: str
    hardness: str
    split: str
    gold: str
    """The reference query as it was given; ``sql`` is its canonical spelling."""
    prompt: str
    template: str
    """``sql`` with the question's values as slots: what the model learns to write."""


def make_questions(
    data: DataSettings, seed: int, database: Database, schema: Schema
) -> tuple[list[Question], list[Question]]:
    """The training questions and the held-out ones.

    Raises:
        DataError: there is nothing to train on, or nothing can be asked about the database.
    """
    build = PromptBuilder(database, schema)
    train, held_out = _human(data, seed, database, schema, build)
    if data.questions:
        counts = {"train": data.questions} | dict.fromkeys(GENERATED_SPLITS, data.held_out)
        for split, count in counts.items():
            if count:
                made = generate(
                    schema,
                    database,
                    seed=seed,
                    count=count,
                    split=cast(Split, split),
                    languages=data.languages,
                    exclude_sql={
                        q.sql for q in (held_out if split == TRAIN else [*train, *held_out])
                    },
                )
                target = train if split == "train" else held_out
                target += [_question(build, example, example.sql) for example in made]
    # The values of a question are not in its prompt: two queries may differ in nothing else.
    unseen = {question.prompt for question in held_out}
    human = {question.prompt for question in train if not question.pattern}
    train = [q for q in train if q.prompt not in unseen or q.prompt in human]
    if not train:
        raise DataError("There is nothing to train on: no examples, and [data] questions is 0.")
    return train, held_out


def _question(build: PromptBuilder, example: Example, gold: str) -> Question:
    prompt = build(example.question)
    return Question(
        question=example.question,
        sql=example.sql,
        language=example.language,
        pattern=example.pattern,
        hardness=example.hardness,
        split=example.split,
        gold=gold,
        prompt=prompt.text,
        template=prompt.template(example.sql),
    )


def _human(
    data: DataSettings, seed: int, database: Database, schema: Schema, build: PromptBuilder
) -> tuple[list[Question], list[Question]]:
    """The examples of a file: canonical, split, and varied by other values of the same columns."""
    if data.examples is None:
        return [], []
    examples = read_examples(
        data.examples, split_key=data.examples_split or "split", where=data.examples_where
    )
    chosen, kept = _split(data, seed, examples, schema)
    canonical = {example.sql: canonical_sql(example.sql, schema) for example in examples}

    def question(example: QuestionSql, text: str, sql: str, split: str, gold: str) -> Question:
        made = Example(text, sql, example.language, "", hardness(sql), split)
        return _question(build, made, gold)

    asked = {example.question for example in kept}
    unseen = {canonical[e.sql] for e in kept} - {canonical[e.sql] for e in chosen}
    varied = vary_examples(
        [(example.question, canonical[example.sql]) for example in chosen],
        schema,
        build.index,
        copies=data.examples_copies,
        seed=derive_seed(seed, "examples"),
        # Other values must not turn a training example into a held-out one.
        accept=lambda sql: sql not in unseen and _runs(database, sql),
    )
    train = []
    for example, found in zip(chosen, varied, strict=True):
        pairs = [found[0], *(pair for pair in found[1:] if pair[0] not in asked)]
        # An example whose values cannot be exchanged is repeated, so that all weigh the same.
        for number in range(data.examples_copies):
            text, sql = pairs[number % len(pairs)]
            train.append(question(example, text, sql, TRAIN, sql))
    held_out = [question(e, e.question, canonical[e.sql], e.split or HELD_OUT, e.sql) for e in kept]
    return train, held_out


def _runs(database: Database, sql: str) -> bool:
    try:
        return bool(database.execute(sql, row_cap=1, timeout_s=NO_CLOCK, most_steps=STEPS).rows)
    except RequestError:
        return False


def _split(
    data: DataSettings, seed: int, examples: list[QuestionSql], schema: Schema
) -> tuple[list[QuestionSql], list[QuestionSql]]:
    """By the file's own field where one is named, else at random by query or by question."""
    if data.examples_split is not None:
        train = [example for example in examples if example.split == TRAIN]
        return train, [example for example in examples if example.split != TRAIN]

    def key(example: QuestionSql) -> str:
        by_query = data.examples_unit == "query"
        return canonical_sql(example.sql, schema) if by_query else example.question.casefold()

    return split_groups(examples, data.examples_held_out, derive_seed(seed, "split"), key)


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON object per line, whole or not at all."""
    lines = (json.dumps(asdict(question), ensure_ascii=False) for question in questions)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_questions(path: Path) -> list[Question]:
    """What :func:`write_questions` wrote."""
    if path.stat().st_size == 0:
        return []
    return [Question(**record) for record in read_jsonl(path)]
