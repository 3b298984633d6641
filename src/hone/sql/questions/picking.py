"""Choosing tables, columns, conditions and values at random, guided by the schema's samples."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from hone.sql.questions.fields import Domain, Edge, Entity, Field, Role
from hone.sql.questions.intents import Columns, Condition, Noun, Operator, Value
from hone.sql.questions.probing import Probe

Item = TypeVar("Item")

# How often a condition is on a column of this role; names and keys pick single rows.
_CONDITION_WEIGHTS: dict[Role, int] = {
    "category": 10,
    "number": 8,
    "date": 7,
    "name": 4,
    "text": 3,
    "flag": 5,
    "key": 1,
}
_COLUMN_WEIGHTS: dict[Role, int] = {"name": 9, "key": 1}
_LONGEST_VALUE = 40


class Skip(Exception):  # noqa: N818 (nothing is wrong: another draw is made)
    """What was drawn cannot be asked; draw again."""


def spread(random: Random, weights: dict[Item, int]) -> Item:
    """One key of ``weights``, drawn by weight."""
    return random.choices(list(weights), list(weights.values()))[0]


class Picker:
    """Draws the parts of questions from a domain with one random stream."""

    def __init__(self, domain: Domain, probe: Probe, random: Random) -> None:
        self.domain = domain
        self.probe = probe
        self.random = random

    def one(self, items: Sequence[Item]) -> Item:
        """One of ``items``; raises :class:`Skip` when there are none."""
        if not items:
            raise Skip
        return self.random.choice(items)

    def entity(self, *roles: Role, where: Callable[[Entity], bool] | None = None) -> Entity:
        """A table with a field of one of ``roles`` (any, when none are given)."""
        found = [
            entity
            for entity in self.domain.entities
            if (not roles or entity.having(*roles)) and (where is None or where(entity))
        ]
        return self.one(found)

    def field(self, entity: Entity, *roles: Role) -> Field:
        """A field of ``entity`` with one of ``roles``."""
        return self.one(entity.having(*roles))

    def columns(self, entity: Entity, most: int = 3, without: Sequence[Field] = ()) -> Columns:
        """One to ``most`` columns of ``entity``, names more often than keys, without repeats."""
        left = [field for field in entity.fields if field not in without]
        if not left:
            raise Skip
        count = min(self.random.choices((1, 2, 3), (60, 30, 10))[0], most, len(left))
        chosen: list[Field] = []
        for _ in range(count):
            weights = [_COLUMN_WEIGHTS.get(field.role, 4) for field in left]
            field = self.random.choices(left, weights)[0]
            left.remove(field)
            chosen.append(field)
        # A row is introduced by its name: "name and price", not "price and name".
        return Columns(tuple(sorted(chosen, key=lambda field: field.role != "name")))

    def edge(self, where: Callable[[Edge], bool] | None = None) -> Edge:
        """A foreign key between two tables."""
        return self.one([edge for edge in self.domain.edges if where is None or where(edge)])

    def noun(self, entity: Entity, conditions: Sequence[int] = (40, 45, 15)) -> Noun:
        """Rows of ``entity`` with 0, 1 or 2 conditions, drawn by the weights ``conditions``."""
        count = self.random.choices(range(len(conditions)), conditions)[0]
        chosen: list[Condition] = []
        while len(chosen) < count:
            condition = self.condition(entity)
            if all(condition.field is not other.field for other in chosen):
                chosen.append(condition)
            elif len(self._conditionable(entity)) < count:
                break
        joiner = "OR" if len(chosen) > 1 and self.random.random() < 0.3 else "AND"
        return Noun(entity, tuple(chosen), joiner)  # type: ignore[arg-type]

    def owned(self, edge: Edge, own: Sequence[int] = (75, 25), far: float = 0.25) -> Noun:
        """Rows of ``edge.child`` that belong to rows of ``edge.parent`` with a condition.

        With probability ``far`` the condition is one foreign key further on, if there is a way
        that the words leave no doubt about.
        """
        noun = self.noun(edge.child, own)
        onward = [
            other
            for other in self.domain.edges
            if other.child is edge.parent
            and other.parent is not edge.child
            and not self.domain.linked(edge.child, other.parent)
        ]
        owner = self.noun(edge.parent, (0, 85, 15))
        if onward and self.random.random() < far:
            further = self.one(onward)
            owner = Noun(edge.parent, (), "AND", further, self.noun(further.parent, (0, 1)))
            noun = Noun(noun.entity, noun.conditions[:1])
        if owner.joiner == "OR" or noun.joiner == "OR":
            # "of a or b" after "of" would be read in two ways.
            owner = Noun(owner.entity, owner.conditions[:1], "AND", owner.edge, owner.owner)
            noun = Noun(noun.entity, noun.conditions[:1])
        return Noun(noun.entity, noun.conditions, noun.joiner, edge, owner)

    def condition(self, entity: Entity) -> Condition:
        """A condition on a column of ``entity`` with values that occur in it."""
        fields = self._conditionable(entity)
        if not fields:
            raise Skip
        weights = [_CONDITION_WEIGHTS[field.role] for field in fields]
        field = self.random.choices(fields, weights)[0]
        if field.column.null_fraction > 0 and self.random.random() < 0.25:
            return Condition(field, self.random.choice(("null", "null", "not_null")))
        match field.role:
            case "number":
                return self._number(field)
            case "date":
                return self._date(field)
            case "category":
                return self._category(field)
            case "name" | "text":
                return self._text(field)
            case "flag":
                return Condition(field, "eq", (self.random.choice((0, 1)),))
            case _:
                return Condition(field, "eq", (self.one(field.column.samples),))

    def threshold(self, values: Sequence[Value]) -> Value:
        """A number between the smallest and largest of ``values``, rounded as people round."""
        numbers = sorted(value for value in values if not isinstance(value, str))
        if len(set(numbers)) < 2:
            raise Skip
        drawn = numbers[int(len(numbers) * self.random.uniform(0.1, 0.9))]
        rounded = _round(drawn, self.random.choice((1, 1, 2)))
        return rounded if numbers[0] < rounded < numbers[-1] else drawn

    def _conditionable(self, entity: Entity) -> list[Field]:
        return [
            field
            for field in entity.fields
            if field.column.samples
            and (field.role != "key" or (field.column.name,) == entity.table.primary_key)
        ]

    def _number(self, field: Field) -> Condition:
        values = field.column.samples
        if len(values) <= 12 and self.random.random() < 0.4:
            operator: Operator = self.random.choice(("eq", "eq", "eq", "ne"))
            return Condition(field, operator, (self.one(values),))
        if self.random.random() < 0.2:
            low, high = sorted((self.threshold(values), self.threshold(values)))
            if low == high:
                raise Skip
            return Condition(field, "between", (low, high))
        return Condition(
            field, self.random.choice(("gt", "lt", "ge", "le")), (self.threshold(values),)
        )

    def _date(self, field: Field) -> Condition:
        value = str(self.one(field.column.samples))[:10]
        kind = spread(
            self.random,
            {"year": 30, "month": 22, "gt": 8, "lt": 8, "ge": 8, "le": 8, "between": 12, "eq": 6},
        )
        if kind == "year":
            return Condition(field, "year", (value[:4],))
        if kind == "month":
            return Condition(field, "month", (value[:7],))
        if field.column.kind == "datetime" and kind in ("eq", "le", "gt", "between"):
            # A bare day is midnight there: "until the 5th" would leave out the 5th itself.
            kind = self.random.choice(("ge", "lt"))
        if kind == "between":
            low, high = sorted((value, str(self.one(field.column.samples))[:10]))
            if low == high:
                raise Skip
            return Condition(field, "between", (low, high))
        return Condition(field, kind, (value,))  # type: ignore[arg-type]

    def _category(self, field: Field) -> Condition:
        values = [value for value in field.column.samples if _sayable(value)]
        kind = spread(self.random, {"eq": 68, "ne": 14, "in": 18 if len(values) > 3 else 0})
        if kind == "in":
            chosen = self.random.sample(values, self.random.choice((2, 2, 3)))
            return Condition(field, "in", tuple(chosen))
        return Condition(field, kind, (self.one(values),))  # type: ignore[arg-type]

    def _text(self, field: Field) -> Condition:
        value = str(self.one([value for value in field.column.samples if _sayable(value)]))
        equal = 0.6 if field.role == "name" else 0.3
        if self.random.random() < equal:
            return Condition(field, "eq", (value,))
        operator: Operator = self.random.choice(("contains", "contains", "starts", "ends"))
        piece = self._piece(value, operator)
        if not piece or any(mark in piece for mark in "%_'\""):
            raise Skip
        return Condition(field, operator, (piece,))

    def _piece(self, value: str, operator: Operator) -> str:
        words = value.split()
        if operator == "contains":
            word = self.random.choice(words)
            start = self.random.randrange(max(1, len(word) - 1)) if len(word) <= 3 else 0
            return word[start : start + 4] if len(word) > 4 else word[start : start + 2]
        length = self.random.choice((1, 2, 2, 3))
        if operator == "starts":
            return words[0] if len(words) > 1 and self.random.random() < 0.5 else value[:length]
        return words[-1] if len(words) > 1 and self.random.random() < 0.5 else value[-length:]


def _sayable(value: Value) -> bool:
    """Whether a value can stand in a sentence: short, on one line, no loose blanks or quotes."""
    text = str(value)
    plain = text == " ".join(text.split()) and text.isprintable() and '"' not in text
    return plain and 0 < len(text) <= _LONGEST_VALUE


def _round(value: int | float, digits: int) -> int | float:
    if value == 0:
        return 0
    if isinstance(value, float):
        return float(f"{value:.{digits + 1}g}")
    return int(float(f"{value:.{digits}g}"))
