"""Databases and SQL: reading a schema, running queries safely, comparing, scoring and asking.

Belongs here: whatever needs a database or understands SQL text, without any model.
Not here: prompts (``text``), training files (``data``), scores over a model (``evals``).
"""

from hone.sql.canonical import canonical_sql
from hone.sql.compare import execution_match, is_ordered, same_rows
from hone.sql.exact import exact_set_match
from hone.sql.execute import Database, Result, open_database
from hone.sql.grammar import SqlGrammar
from hone.sql.hardness import Hardness, hardness
from hone.sql.identifiers import quote_identifier
from hone.sql.linking import Link, ValueIndex
from hone.sql.schema import Column, ForeignKey, Labels, Schema, Table, read_schema

__all__ = [
    "Column",
    "Database",
    "ForeignKey",
    "Hardness",
    "Labels",
    "Link",
    "Result",
    "Schema",
    "SqlGrammar",
    "Table",
    "ValueIndex",
    "canonical_sql",
    "exact_set_match",
    "execution_match",
    "hardness",
    "is_ordered",
    "open_database",
    "quote_identifier",
    "read_schema",
    "same_rows",
]
