"""A database for the server's pane: its schema, questions about it, and queries that only read.

Nothing here needs torch: the process that speaks HTTP has none.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.core.errors import RequestError
from hone.recipes.assistant import MAX_TOKENS, PromptBuilder
from hone.serve.database import Question
from hone.sql import ForeignKey, Labels, Table, open_database, read_schema
from hone.text.prompts import Prompt

_ROWS = 200
_SECONDS = 5.0
_SAMPLES = 5
# Whole numbers beyond this are rounded by JavaScript, so they go as text.
_EXACT = 2**53


@dataclass(frozen=True, slots=True)
class _Asked(Question):
    """A question with the values of its slots."""

    slots: Prompt | None = None


class AskedDatabase:
    """One database and the prompts that a Text2SQL model was trained on."""

    def __init__(
        self,
        path: Path,
        glossary: Path | None = None,
        examples: tuple[str, ...] = (),
        rows: int = _ROWS,
        timeout_s: float = _SECONDS,
    ) -> None:
        """Open ``path`` for reading.

        Args:
            path: a SQLite file.
            glossary: names of its tables and columns, as the model was trained with them.
            examples: questions to try.
            rows: most rows of an answer.
            timeout_s: seconds that a query may take.

        Raises:
            DataError: ``path`` is no readable SQLite database, or has no tables.
            ConfigError: the glossary is wrong.
        """
        self._name, self._examples = path.name, examples
        self._row_cap, self._timeout_s = rows, timeout_s
        self._schema = read_schema(path, glossary)
        self._database = open_database(path)
        self._prompts = PromptBuilder(self._database, self._schema)

    def schema(self) -> dict[str, Any]:
        """Its tables as JSON: name, tables, foreign_keys, notes, questions (examples)."""
        return {
            "name": self._name,
            "tables": [_table(table) for table in self._schema.tables],
            "foreign_keys": [_key(key) for key in self._schema.foreign_keys],
            "notes": list(self._schema.notes),
            "questions": list(self._examples),
        }

    def ask(self, question: str) -> Question:
        """The prompt for ``question``.

        Raises:
            RequestError: it is empty.
        """
        if not question.strip():
            raise RequestError("The question is empty. Ask something about the database.")
        prompt = self._prompts(question)
        return _Asked(prompt.text, self._prompts.grammar(prompt), MAX_TOKENS, prompt)

    def query(self, question: Question, output: str) -> str:
        """The SQL that ``output`` stands for, the question's values put in."""
        assert isinstance(question, _Asked)
        assert question.slots is not None
        return question.slots.fill(output).strip()

    def run(self, sql: str) -> dict[str, Any]:
        """Run a query: {columns, rows, truncated, error, seconds}, all of it JSON."""
        try:
            result = self._database.execute(sql, self._row_cap, self._timeout_s)
        except RequestError as error:
            return {
                "columns": [], "rows": [], "truncated": False, "error": str(error), "seconds": 0.0,
            }  # fmt: skip
        return {
            "columns": list(result.columns),
            "rows": [[_value(value) for value in row] for row in result.rows],
            "truncated": result.truncated,
            "error": None,
            "seconds": result.seconds,
        }

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "is_view": table.is_view,
        "rows": table.rows,
        "labels": _labels(table.labels),
        "columns": [
            {
                "name": column.name,
                "type": column.type,
                "kind": column.kind,
                "nullable": column.nullable,
                "primary": column.name in table.primary_key,
                "labels": _labels(column.labels),
                "samples": [_value(value) for value in column.samples[:_SAMPLES]],
            }
            for column in table.columns
        ],
    }


def _labels(labels: Labels) -> dict[str, list[str]]:
    return {"en": list(labels.en), "ko": list(labels.ko)}


def _key(key: ForeignKey) -> dict[str, Any]:
    return {
        "table": key.table,
        "columns": list(key.columns),
        "ref_table": key.ref_table,
        "ref_columns": list(key.ref_columns),
        "inferred": key.inferred,
    }


def _value(value: object) -> object:
    """A value of SQLite as JSON has it."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    return value
