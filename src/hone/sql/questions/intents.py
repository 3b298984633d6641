"""A question's meaning, apart from any language, and the one way to spell it in SQL.

An :class:`Intent` holds the SQL and the parts that a sentence frame may name. A frame's ``{slot}``
is a part, ``{slot_form}`` a part in another form:

===========  ==================================================================
``np``       rows of a table with their conditions (``_one``: in the singular; ``_bare``: without
             conditions; ``_counter``: the Korean counter). So are ``parent``, ``child``, ``left``
             and ``right``.
``cols``     the columns asked for; ``other`` those of the linked table
``field``    one column (``_many``: in the plural); so are ``group`` and ``date``
``key``      the number or date that is compared or sorted by (``a_key`` with an article)
``agg``      one or two aggregates, "average price" (``an_agg`` with an article)
``sup``      highest, lowest, latest, earliest; ``top`` is the Korean 상위, 하위
``side``     above or below; ``bound`` maximum or minimum; ``most`` most or fewest
``than``     a comparison with a number
``k``        how many rows; ``period`` year or month; ``direction`` and ``from_to`` of sorting
``name``     one row, by its name
===========  ==================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hone.sql.questions.fields import Edge, Entity, Field

Value = int | float | str
Operator = Literal[
    "eq", "ne", "gt", "lt", "ge", "le", "between", "in", "contains", "starts", "ends",
    "null", "not_null", "year", "month",
]  # fmt: skip
Function = Literal["COUNT", "SUM", "AVG", "MIN", "MAX"]

COMPARISONS: dict[str, str] = {"eq": "=", "ne": "!=", "gt": ">", "lt": "<", "ge": ">=", "le": "<="}


def literal(value: Value) -> str:
    """``value`` in SQL."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else plain(value)


def plain(value: int | float) -> str:
    """A number as people write it: 2002, not 2002.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value)


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A test of one column. For ``year`` and ``month`` the value is "2024" or "2024-03"."""

    field: Field
    operator: Operator
    values: tuple[Value, ...] = ()

    def sql(self, qualified: bool) -> str:
        """The condition in SQL."""
        column = self.field.sql(qualified)
        match self.operator:
            case "null":
                return f"{column} IS NULL"
            case "not_null":
                return f"{column} IS NOT NULL"
            case "in":
                return f"{column} IN ({', '.join(map(literal, self.values))})"
            case "between":
                return f"{column} BETWEEN {literal(self.values[0])} AND {literal(self.values[1])}"
            case "contains" | "starts" | "ends":
                before = "" if self.operator == "starts" else "%"
                after = "" if self.operator == "ends" else "%"
                return f"{column} LIKE {literal(f'{before}{self.values[0]}{after}')}"
            case "year":
                return f"STRFTIME('%Y', {column}) = {literal(self.values[0])}"
            case "month":
                return f"STRFTIME('%Y-%m', {column}) = {literal(self.values[0])}"
            case comparison:
                return f"{column} {COMPARISONS[comparison]} {literal(self.values[0])}"


def needs_quotes(condition: Condition) -> bool:
    """Whether a value is said in quotes: a text of several words would blend into the sentence."""
    is_text = condition.field.role in ("text", "category")
    return is_text and any(" " in str(value) for value in condition.values)


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """The rows of ``entity`` that meet all (or any) ``conditions`` and belong to ``owner``."""

    entity: Entity
    conditions: tuple[Condition, ...] = ()
    joiner: Literal["AND", "OR"] = "AND"
    edge: Edge | None = None
    owner: "Noun | None" = None

    @property
    def joins(self) -> tuple[Edge, ...]:
        """The foreign keys from this table to its owners, nearest first."""
        if self.edge is None:
            return ()
        return (self.edge, *(self.owner.joins if self.owner else ()))

    def where(self, qualified: bool) -> str:
        """All conditions, owners' ones last, in SQL; empty when there are none."""
        own = f" {self.joiner} ".join(item.sql(qualified) for item in self.conditions)
        far = self.owner.where(qualified) if self.owner else ""
        if own and far and self.joiner == "OR" and len(self.conditions) > 1:
            own = f"({own})"
        return " AND ".join(part for part in (own, far) if part)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Columns in the order asked for; ``owner`` is said with them when it is not the subject."""

    fields: tuple[Field, ...]
    owner: Entity | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FieldOf:
    """One column; ``owner`` is said with it when it is not the subject's."""

    field: Field
    owner: Entity | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Aggregates:
    """One or two aggregates of number or date columns."""

    items: tuple[tuple[Function, Field], ...]

    def sql(self, qualified: bool) -> list[str]:
        """The aggregates in SQL."""
        return [f"{function}({field.sql(qualified)})" for function, field in self.items]


@dataclass(frozen=True, slots=True, eq=False)
class Extreme:
    """The highest (or lowest) of a number, the latest (or earliest) of a date; of a count: most."""

    high: bool
    field: Field | None = None

    @property
    def date(self) -> bool:
        """Whether it is about a date."""
        return self.field is not None and self.field.role == "date"


@dataclass(frozen=True, slots=True, eq=False)
class Than:
    """A comparison with a number; ``counted`` are the rows that the number counts."""

    operator: Operator
    value: Value
    counted: Entity | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """One row of ``entity``, called by its name."""

    entity: Entity
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Period:
    """A part of a date."""

    unit: Literal["year", "month"]

    def sql(self, column: str) -> str:
        """The part of ``column`` in SQL."""
        form = "%Y" if self.unit == "year" else "%Y-%m"
        return f"STRFTIME('{form}', {column})"


Part = Noun | Columns | FieldOf | Aggregates | Extreme | Than | Named | Period | int


@dataclass(frozen=True, slots=True, eq=False)
class Intent:
    """One question, its SQL and the parts that a frame of its ``kind`` may name.

    What must hold of the data for the question to be worth asking: the conditions of ``nouns``
    each change what is selected; the answer has ``at_least`` so many rows; the query ``ranked``
    has more, and they differ in its last column, which decides their order; the answer has another
    number of rows than each query of ``unlike``.
    """

    kind: str
    sql: str
    parts: Mapping[str, Part]
    nouns: tuple[Noun, ...] = ()
    at_least: int = 1
    ranked: str = ""
    unlike: tuple[str, ...] = ()


def select(
    items: list[str],
    noun: Noun,
    *,
    distinct: bool = False,
    group: str = "",
    having: str = "",
    order: str = "",
    limit: int = 0,
    joins: tuple[Edge, ...] = (),
) -> str:
    """One SELECT over ``noun`` and its owners, in the one spelling that hone uses.

    Columns carry their table's name when, and only when, more than one table is joined.
    """
    edges = noun.joins + joins
    where = noun.where(bool(edges))
    words = [
        "SELECT DISTINCT" if distinct else "SELECT",
        ", ".join(items),
        f"FROM {noun.entity.sql}",
        *(edge.join for edge in edges),
        f"WHERE {where}" if where else "",
        f"GROUP BY {group}" if group else "",
        f"HAVING {having}" if having else "",
        f"ORDER BY {order}" if order else "",
        f"LIMIT {limit}" if limit else "",
    ]
    return " ".join(word for word in words if word)
