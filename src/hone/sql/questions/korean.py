"""Spelling the parts of a question in Korean."""

import re
from random import Random

from hone.sql.questions.fields import Entity, Field
from hone.sql.questions.intents import (
    Aggregates,
    Columns,
    Condition,
    Extreme,
    FieldOf,
    Named,
    Noun,
    Part,
    Period,
    Than,
    Value,
    needs_quotes,
    plain,
)
from hone.sql.questions.korean_words import (
    ADJECTIVES,
    AGGREGATES,
    COUNTERS,
    DATE_AGGREGATES,
    DATE_PREDICATES,
    PREDICATES,
    THAN,
    THAN_VALUE,
    Predicate,
)
from hone.text.korean import attach, fill


def counter(noun: str) -> str:
    """The word that counts ``noun``: 명 for people, 건 for affairs, 곳 for places, else 개."""
    for word, nouns in COUNTERS:
        if noun.lower().endswith(tuple(nouns.split())):
            return word
    return "개"


class Korean:
    """Spells parts of one question; a table keeps one of its names throughout."""

    def __init__(self, random: Random, synonyms: float) -> None:
        self.random = random
        self.synonyms = synonyms
        self._names: dict[int, str] = {}

    def fill(self, frame: str, parts: dict[str, Part]) -> str:
        """``frame`` with its slots filled from ``parts`` and its particles settled."""
        slots = dict.fromkeys(re.findall(r"\{(\w+)\}", frame))
        return fill(frame, **{slot: self._slot(slot, parts) for slot in slots})

    def _slot(self, slot: str, parts: dict[str, Part]) -> str:
        if slot in parts:
            return self._part(parts[slot], "", slot)
        name, _, form = slot.rpartition("_")
        return self._part(parts[name], form, name)

    def _part(self, part: Part, form: str, slot: str) -> str:
        match part:
            case Noun():
                if form == "counter":
                    return counter(self._label(part.entity))
                return self._label(part.entity) if form == "bare" else self._noun(part)
            case Columns():
                return self._columns(part)
            case FieldOf():
                return self._owned(part.field, part.owner, " ")
            case Aggregates():
                if form == "what":
                    return "언제" if part.items[0][1].role == "date" else "얼마"
                return self._aggregates(part)
            case Extreme():
                return self._extreme(part, slot, form)
            case Than():
                return self._than(part, form)
            case Named():
                return f"{self._label(part.entity)} {part.value}"
            case Period():
                return {"year": "연도", "month": "월"}[part.unit]
            case number:
                return str(number)

    def _label(self, item: Entity | Field) -> str:
        """One name for a table or column, the same throughout one question."""
        if id(item) not in self._names:
            labels = item.labels["ko"]
            other = len(labels) > 1 and self.random.random() < self.synonyms
            self._names[id(item)] = self.random.choice(labels[1:]) if other else labels[0]
        return self._names[id(item)]

    def _columns(self, part: Columns) -> str:
        # "고객의 이름과 도시", but "고객 이름" reads better for one.
        link = " " if len(part.fields) == 1 else "의 "
        names = [self._label(field) for field in part.fields]
        names[0] = self._owned(part.fields[0], part.owner, link)
        if len(names) == 2 and self.random.random() < 0.75:
            return f"{attach(names[0], '과/와')} {names[1]}"
        return ", ".join(names)

    def _owned(self, field: Field, owner: Entity | None, link: str) -> str:
        """A column with its table's name before it, unless it begins with that: 주문일."""
        label = self._label(field)
        name = self._label(owner) if owner else ""
        return label if not name or label.startswith(name) else name + link + label

    def _aggregates(self, part: Aggregates) -> str:
        field = part.items[0][1]
        label = self._label(field)
        if len(part.items) > 1:
            dated = {"MIN": "가장 이른 날", "MAX": "가장 늦은 날"}
            plain = {"AVG": "평균", "SUM": "합계", "MIN": "최솟값", "MAX": "최댓값"}
            words = dated if field.role == "date" else plain
            first, second = (words[function] for function, _ in part.items)
            return f"{label} {attach(first, '과/와')} {second}"
        forms = DATE_AGGREGATES if field.role == "date" else AGGREGATES
        high, low, most, least = self._adjectives(field)
        form = self.random.choice(forms[part.items[0][0]])
        return form.format(x=label, high=high, low=low, most=most, least=least)

    def _adjectives(self, field: Field | None) -> tuple[str, str, str, str]:
        """high, low, highest and lowest as they are said of ``field``: 무거운, 가벼운, ..."""
        label = self._label(field) if field else ""
        return next(
            (*adjectives, *bounds)
            for endings, adjectives, bounds in ADJECTIVES
            if not endings or label.endswith(tuple(endings.split()))
        )

    def _extreme(self, part: Extreme, slot: str, form: str) -> str:
        match slot:
            case "most":
                if form == "end":
                    return "많아" if part.high else "적어"
                return "많은" if part.high else "적은"
            case "direction":
                return "내림차순" if part.high else "오름차순"
            case "top" if part.date:
                return "늦은 순" if part.high else "이른 순"
            case "top":
                return "상위" if part.high else "하위"
            case "bound" if form == "whole":
                return self._adjectives(part.field)[2 if part.high else 3]
            case "bound":
                return "최댓" if part.high else "최솟"
            case "from_to" if part.date:
                return "늦은" if part.high else "이른"
        if part.date:
            return self.random.choice(("늦은", "최근인") if part.high else ("이른", "빠른"))
        return self._adjectives(part.field)[0 if part.high else 1]

    def _than(self, part: Than, form: str) -> str:
        if part.counted is None:
            return self.random.choice(THAN_VALUE[part.operator]).format(v=_number(part.value))
        number = f"{_number(part.value)}{counter(self._label(part.counted))}"
        plain, there = self.random.choice(THAN[part.operator])
        return (there if form == "there" else plain).format(v=number)

    def _noun(self, noun: Noun) -> str:
        name = self._label(noun.entity)
        conditions = list(noun.conditions)
        if conditions and noun.joiner == "AND" and self.random.random() < 0.2:
            first = next((item for item in conditions if _is_adjective(item)), None)
            if first is not None:
                conditions.remove(first)
                name = f"{first.values[0]} {name}"
        words = [self._predicate(condition) for condition in conditions]
        last = 2 if noun.joiner == "OR" else 1
        spelt = [stem + endings[last] for stem, endings in words[:-1]]
        spelt += [stem + endings[0] for stem, endings in words[-1:]]
        text = " ".join([*spelt, name])
        return f"{self._noun(noun.owner)}의 {text}" if noun.owner else text

    def _predicate(self, condition: Condition) -> Predicate:
        dated = condition.field.role == "date"
        forms = DATE_PREDICATES.get(condition.operator) if dated else None
        stem, endings = self.random.choice(forms or PREDICATES[condition.operator])
        values = [_value(value, condition.field) for value in condition.values]
        if condition.operator in ("eq", "ne", "in") and needs_quotes(condition):
            values = [f"'{value}'" for value in values]
        if condition.operator == "in":
            values = [self._either(values)]
        elif condition.operator == "year":
            values = [f"{values[0]}년"]
        elif condition.operator == "month":
            year, month = values[0].split("-")
            values = [f"{year}년 {int(month)}월"]
        first, second = (*values, "", "")[:2]
        return fill(stem, c=self._label(condition.field), v=first, w=second), endings

    def _either(self, values: list[str]) -> str:
        *others, last = values
        if len(values) == 2 and self.random.random() < 0.5:
            return f"{attach(others[0], '이나/나')} {last}"
        return f"{', '.join(others)} 또는 {last}"


def _is_adjective(condition: Condition) -> bool:
    """Whether a value can stand before the noun: "VIP 고객"."""
    field = condition.field
    return (
        condition.operator == "eq" and field.role == "category" and len(field.column.samples) <= 16
    )


def _number(value: Value) -> str:
    return value if isinstance(value, str) else plain(value)


def _value(value: Value, field: Field) -> str:
    if field.role == "flag":
        return "참" if value else "거짓"
    return _number(value)
