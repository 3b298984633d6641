"""A Text2SQL model and the database that it answers about.

Training, evaluation and ``hone ask`` build their prompts here, so they cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hone.core.errors import RequestError
from hone.sql import Column, Database, Result, Schema, Table, ValueIndex
from hone.text.prompts import MOST_SLOTS, Prompt, clean_question, text2sql_prompt

if TYPE_CHECKING:
    from hone.engine import LM

MAX_TOKENS = 200
_QUOTES = "'\"‘“"


class PromptBuilder:
    """Prompts for questions about one database."""

    def __init__(self, database: Database, schema: Schema) -> None:
        """Index the text values of ``database``, so that a question's values can be found."""
        self.index = ValueIndex.build(database, schema)
        self._own_words = _own_words(schema)

    def __call__(self, question: str) -> Prompt:
        """The prompt for ``question``, its values in slots."""
        question = clean_question(question)
        links = [
            link
            for link in self.index.link(question, limit=MOST_SLOTS)
            # A store may be called 매장 ("store") in some column; the word still means stores.
            if question[link.start : link.end].casefold() not in self._own_words
            or question[max(link.start - 1, 0)] in _QUOTES
        ]
        return text2sql_prompt(question, links)


def _own_words(schema: Schema) -> frozenset[str]:
    """Every name of a table or a column, as people may write it."""
    named: list[Table | Column] = list(schema.tables)
    named += [column for table in schema.tables for column in table.columns]
    words = {word for item in named for word in (item.name, *item.labels.en, *item.labels.ko)}
    return frozenset(word.casefold() for word in words)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question led to.

    Attributes:
        sql: the query that the model wrote.
        result: its rows, or None when it did not run.
        error: why it did not run, or None.
    """

    question: str
    sql: str
    result: Result | None
    error: str | None


class Assistant:
    """Answers questions about one database with one model."""

    def __init__(self, lm: "LM", database: Database, schema: Schema) -> None:
        self.lm, self.database = lm, database
        self.prompt = PromptBuilder(database, schema)

    def write_sql(self, questions: Sequence[str], max_tokens: int = MAX_TOKENS) -> list[str]:
        """One greedy query per question; a query cut off at ``max_tokens`` stays cut off."""
        from hone.engine import SamplingParams

        prompts = [self.prompt(question) for question in questions]
        results = self.lm.generate(
            [prompt.text for prompt in prompts], SamplingParams(max_tokens=max_tokens)
        )
        return [
            prompt.fill(result.text).strip()
            for prompt, result in zip(prompts, results, strict=True)
        ]

    def ask(self, question: str, row_cap: int = 1000, timeout_s: float = 5.0) -> Answer:
        """Write the query for ``question`` and run it; nothing in it can change the database.

        Raises:
            RequestError: the question is empty or longer than the model's context.
        """
        if not question.strip():
            raise RequestError("The question is empty. Ask something about the database.")
        (sql,) = self.write_sql([question])
        try:
            return Answer(question, sql, self.database.execute(sql, row_cap, timeout_s), None)
        except RequestError as error:
            return Answer(question, sql, None, str(error))
