"""What can be asked about a schema: the role of each column, its names, and how tables link."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from hone.sql.identifiers import quote_identifier, readable
from hone.sql.schema import Column, ForeignKey, Schema, Table

Role = Literal["key", "name", "category", "text", "number", "date", "flag"]
LANGUAGES = ("ko", "en")

_NAME_WORDS = frozenset({"name", "title", "이름", "성명", "제목", "명칭"})
_CODE = re.compile(
    r"(^|[ _])(id|ids|no|nr|num|number|code|zip|phone|fax|year|번호|코드)$", re.IGNORECASE
)
_CATEGORY_VALUES = 60


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A column that questions may name. ``labels`` are its display names, main one first."""

    table: Table
    column: Column
    role: Role
    labels: dict[str, tuple[str, ...]]

    def sql(self, qualified: bool) -> str:
        """The column in SQL, with its table's name where more than one table is in scope."""
        name = quote_identifier(self.column.name)
        return f"{quote_identifier(self.table.name)}.{name}" if qualified else name


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """A foreign key: each row of ``child`` has one row of ``parent``."""

    child: "Entity"
    key: Field
    parent: "Entity"
    target: Field

    @property
    def join(self) -> str:
        """The SQL that appends ``parent`` to a FROM clause that holds ``child``."""
        table = quote_identifier(self.parent.table.name)
        return f"JOIN {table} ON {self.key.sql(True)} = {self.target.sql(True)}"


@dataclass(frozen=True, slots=True, eq=False)
class Entity:
    """A table that questions may name, with the columns that they may name."""

    table: Table
    fields: tuple[Field, ...]
    labels: dict[str, tuple[str, ...]]

    @property
    def sql(self) -> str:
        """The table's name in SQL."""
        return quote_identifier(self.table.name)

    def having(self, *roles: Role) -> list[Field]:
        """The fields with one of ``roles``."""
        return [field for field in self.fields if field.role in roles]

    @property
    def name(self) -> Field | None:
        """The field that tells rows apart by a word, if there is one."""
        return next(iter(self.having("name")), None)


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """Everything that can be asked about a schema.

    ``twins`` are pairs of columns of two tables that go by the same name in every language and hold
    the same kind of values, so that sets of them can be compared.
    """

    entities: tuple[Entity, ...]
    edges: tuple[Edge, ...]
    twins: tuple[tuple[tuple[Entity, Field], tuple[Entity, Field]], ...]

    def linked(self, one: Entity, other: Entity) -> bool:
        """Whether a foreign key links the two tables directly."""
        ends = {(edge.child.table.name, edge.parent.table.name) for edge in self.edges}
        names = one.table.name, other.table.name
        return names in ends or names[::-1] in ends


def read_domain(schema: Schema) -> Domain:
    """The askable part of ``schema``: tables with columns, columns that are not binary."""
    tables = [table for table in schema.tables if table.columns]
    table_labels = _distinct_labels(tables)
    entities = tuple(
        _entity(table, labels, schema.foreign_keys)
        for table, labels in zip(tables, table_labels, strict=True)
    )
    entities = tuple(entity for entity in entities if entity.fields)
    edges = tuple(_edges(entities, schema.foreign_keys))
    return Domain(entities, edges, tuple(_twins(entities)))


def _entity(table: Table, labels: dict[str, tuple[str, ...]], keys: Sequence[ForeignKey]) -> Entity:
    linking = {
        column.lower()
        for key in keys
        if key.table.lower() == table.name.lower()
        for column in key.columns
    } | {column.lower() for column in table.primary_key}
    named = _distinct_labels(table.columns)
    fields, has_name = [], False
    for column, names in zip(table.columns, named, strict=True):
        role = _role(table, column, column.name.lower() in linking)
        if role == "name":
            # One name is enough to speak of a row; further ones are ordinary text.
            role, has_name = ("text", True) if has_name else ("name", True)
        if role is not None:
            fields.append(Field(table, column, role, names))
    return Entity(table, tuple(fields), labels)


def _role(table: Table, column: Column, linking: bool) -> Role | None:
    words = readable(column.name)
    if column.kind == "blob":
        return None
    if linking and not (column.kind == "text" and _is_name(table, words)):
        return "key"
    if column.kind in ("date", "datetime"):
        return "date"
    if column.kind == "boolean":
        return "flag"
    if column.kind in ("integer", "real"):
        return "key" if _CODE.search(words) else "number"
    return _text_role(table, column, words)


def _is_name(table: Table, words: str) -> bool:
    """Whether a column names its row: "name", or "store name" in the table of stores."""
    own = readable(table.name)
    rest = [word for word in words.split() if word not in own]
    return len(rest) == 1 and rest[0] in _NAME_WORDS


def _text_role(table: Table, column: Column, words: str) -> Role:
    if not column.samples or column.distinct is None:
        return "name" if _is_name(table, words) else "text"
    read = min(table.rows or 2000, 2000) * (1 - column.null_fraction)
    if _is_name(table, words) and column.distinct > 0.3 * read:
        return "name"
    return "category" if column.distinct <= min(_CATEGORY_VALUES, read / 2) else "text"


def _edges(entities: Sequence[Entity], keys: Sequence[ForeignKey]) -> list[Edge]:
    """Links between two tables of one column each.

    Two tables with two links are left out: "orders of an address" would not say which one is meant.
    """
    by_name = {entity.table.name.lower(): entity for entity in entities}
    pairs = Counter(frozenset((key.table.lower(), key.ref_table.lower())) for key in keys)
    edges = []
    for key in keys:
        child, parent = by_name.get(key.table.lower()), by_name.get(key.ref_table.lower())
        if child is None or parent is None or child is parent or len(key.columns) != 1:
            continue
        if pairs[frozenset((key.table.lower(), key.ref_table.lower()))] > 1:
            continue
        source, target = _find(child, key.columns[0]), _find(parent, key.ref_columns[0])
        if source is not None and target is not None:
            edges.append(Edge(child, source, parent, target))
    return edges


def _twins(
    entities: Sequence[Entity],
) -> list[tuple[tuple[Entity, Field], tuple[Entity, Field]]]:
    named: dict[tuple[str, ...], list[tuple[Entity, Field]]] = {}
    for entity in entities:
        for field in entity.having("category", "text", "name", "key"):
            if field.column.samples and entity.table.primary_key != (field.column.name,):
                names = tuple(field.labels[language][0] for language in LANGUAGES)
                named.setdefault((*names, field.column.kind), []).append((entity, field))
    return [(one, other) for places in named.values() for one, other in permutations(places, 2)]


def _find(entity: Entity, column: str) -> Field | None:
    lowered = column.lower()
    return next((field for field in entity.fields if field.column.name.lower() == lowered), None)


def _distinct_labels(items: Sequence[Table | Column]) -> list[dict[str, tuple[str, ...]]]:
    """For each table or column its labels by language, without those that another one has too."""
    result: list[dict[str, tuple[str, ...]]] = [{} for _ in items]
    plain = Counter(readable(item.name) for item in items)
    for language in LANGUAGES:
        all_labels = [
            tuple(
                dict.fromkeys(" ".join(label.split()) for label in getattr(item.labels, language))
            )
            for item in items
        ]
        uses = Counter(label.lower() for labels in all_labels for label in labels)
        for place, (item, labels) in enumerate(zip(items, all_labels, strict=True)):
            own = tuple(label for label in labels if label and uses[label.lower()] == 1)
            words = readable(item.name)
            fallback = words if plain[words] == 1 else " ".join(item.name.split())
            result[place][language] = own or (fallback,)
    return result
