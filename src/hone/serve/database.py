"""A database that the model answers about, as the server sees it; recipes make one."""

from dataclasses import dataclass
from typing import Any, Protocol

from hone.engine.params import Grammar


@dataclass(frozen=True, slots=True)
class Question:
    """What the model is asked.

    Attributes:
        prompt: text that it continues.
        grammar: what its output must be; None leaves it free.
        max_tokens: most tokens of the query.
    """

    prompt: str
    grammar: Grammar | None = None
    max_tokens: int = 256


class DatabasePane(Protocol):
    """One database, opened for reading only. Its methods run in threads, several at a time."""

    def schema(self) -> dict[str, Any]:
        """Its tables as JSON: name, tables, foreign_keys, notes, questions (examples)."""

    def ask(self, question: str) -> Question:
        """The prompt for a question; raises :class:`RequestError` for one that has none."""

    def query(self, question: Question, output: str) -> str:
        """The SQL that ``output`` stands for, the question's values put in."""

    def run(self, sql: str) -> dict[str, Any]:
        """Run a query: {columns, rows, truncated, error, seconds}, all of it JSON.

        A query that fails is no exception: ``error`` says why, and there are no rows.
        """
