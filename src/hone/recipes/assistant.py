"""A Text2SQL model and the database that it answers about.

Training, evaluation and ``hone ask`` build their prompts here, so they cannot differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hone.core.errors import RequestError
from hone.engine.params import Grammar, SamplingParams
from hone.sql import Column, Database, Result, Schema, SqlGrammar, Table, ValueIndex
from hone.text.prompts import MOST_SLOTS, NUMBER, Prompt, clean_question, text2sql_prompt

if TYPE_CHECKING:
    from hone.engine import LM

MAX_TOKENS = 200
# As a number of rows SQLite takes what fits 64 bits.
_WHOLE = re.compile(r"\d{1,18}")
CUT_OFF = (
    "The query was cut off before its end, and was not run; ask for less at once, or raise the "
    "number of tokens."
)
_QUOTES = "'\"‘“"


class PromptBuilder:
    """Prompts for questions about one database."""

    def __init__(self, database: Database, schema: Schema) -> None:
        """Index the text values of ``database``, so that a question's values can be found."""
        self.index = ValueIndex.build(database, schema)
        self._own_words = _own_words(schema)
        self._grammar = SqlGrammar(schema)

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

    def grammar(self, prompt: Prompt) -> Grammar:
        """What the model may write after ``prompt``: queries that the database accepts."""
        whole = [
            number
            for number, slot in enumerate(prompt.slots, 1)
            if slot.kind == NUMBER and _WHOLE.fullmatch(slot.value)
        ]
        return Grammar("lark", self._grammar(len(prompt.slots), whole))

    def params(self, prompt: Prompt, max_tokens: int = MAX_TOKENS) -> SamplingParams:
        """The likeliest of those queries."""
        return SamplingParams(max_tokens=max_tokens, grammar=self.grammar(prompt))


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


@dataclass(frozen=True, slots=True)
class Written:
    """A query; not ``whole`` where the tokens ran out before its end."""

    sql: str
    whole: bool


class Assistant:
    """Answers questions about one database with one model."""

    def __init__(self, lm: "LM", database: Database, schema: Schema) -> None:
        self.lm, self.database = lm, database
        self.prompt = PromptBuilder(database, schema)

    def write_sql(self, questions: Sequence[str], max_tokens: int = MAX_TOKENS) -> list["Written"]:
        """One greedy query per question, in SQL that the database accepts.

        Raises:
            RequestError: a question is longer than the model's context.
        """
        prompts = [self.prompt(question) for question in questions]
        results = self.lm.generate(
            [prompt.text for prompt in prompts],
            [self.prompt.params(prompt, max_tokens) for prompt in prompts],
        )
        return [
            Written(prompt.fill(result.text).strip(), result.finish_reason == "stop")
            for prompt, result in zip(prompts, results, strict=True)
        ]

    def ask(self, question: str, row_cap: int = 1000, timeout_s: float = 5.0) -> Answer:
        """Write the query for ``question`` and run it; nothing in it can change the database.

        Raises:
            RequestError: the question is empty or longer than the model's context.
        """
        if not question.strip():
            raise RequestError("The question is empty. Ask something about the database.")
        (written,) = self.write_sql([question])
        if not written.whole:
            return Answer(question, written.sql, None, CUT_OFF)
        try:
            result = self.database.execute(written.sql, row_cap, timeout_s)
        except RequestError as error:
            return Answer(question, written.sql, None, str(error))
        return Answer(question, written.sql, result, None)
