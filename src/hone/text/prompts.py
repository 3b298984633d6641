"""The Text2SQL prompt: the one renderer that training, evaluation and serving share.

A prompt is the question, then one line per value of the database that the question mentions
(written the way SQL writes it, so that the model copies instead of spelling), then ``SQL:``.

    How many customers live in Seoul?
    customers.city = 'Seoul'
    SQL:

The schema is not in the prompt. A specialist is trained on one database, whose schema would be the
same text in every prompt: it costs time and tells the model nothing.
"""

import unicodedata
from collections.abc import Iterable
from typing import Protocol


class ValueLink(Protocol):
    """A value of the database that occurs in a question."""

    @property
    def table(self) -> str: ...  # noqa: D102
    @property
    def column(self) -> str: ...  # noqa: D102
    @property
    def value(self) -> str: ...  # noqa: D102


def sql_string(value: str) -> str:
    """``value`` as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def text2sql_prompt(question: str, links: Iterable[ValueLink] = ()) -> str:
    """The prompt for ``question``; the completion is :func:`text2sql_completion`.

    The question is put on one line and in NFC: what a person pastes tokenizes as in training.
    """
    lines = [" ".join(unicodedata.normalize("NFC", question).split())]
    lines += [f"{link.table}.{link.column} = {sql_string(link.value)}" for link in links]
    lines.append("SQL:")
    return "\n".join(lines)


def text2sql_completion(sql: str) -> str:
    """What the model must write after the prompt."""
    return " " + sql
