"""Spelling the parts of a question in English."""

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

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_UNCOUNTABLE = frozenset({"stock", "information", "staff", "data", "equipment", "pay"})

# After "whose", "where the": "{c}" is the column.
_CLAUSES: dict[str, tuple[str, ...]] = {
    "eq": ("{c} is {v}", "{c} is {v}", "{c} equals {v}"),
    "ne": ("{c} is not {v}", "{c} is other than {v}"),
    "gt": (
        "{c} is over {v}",
        "{c} is above {v}",
        "{c} is greater than {v}",
        "{c} is more than {v}",
    ),
    "lt": ("{c} is under {v}", "{c} is below {v}", "{c} is less than {v}"),
    "ge": ("{c} is at least {v}", "{c} is {v} or more"),
    "le": ("{c} is at most {v}", "{c} is {v} or less"),
    "between": ("{c} is between {v} and {w}", "{c} is from {v} to {w}"),
    "in": ("{c} is {v}", "{c} is either {v}"),
    "contains": ("{c} contains '{v}'", "{c} includes '{v}'"),
    "starts": ("{c} starts with '{v}'", "{c} begins with '{v}'"),
    "ends": ("{c} ends with '{v}'", "{c} ends in '{v}'"),
    "null": ("{c} is missing", "{c} is empty", "{c} is not recorded"),
    "not_null": ("{c} is recorded", "{c} is not empty", "{c} is not missing"),
    "year": ("{c} is in {v}", "{c} falls in {v}"),
    "month": ("{c} is in {v}", "{c} falls in {v}"),
}
_DATE_CLAUSES: dict[str, tuple[str, ...]] = {
    "eq": ("{c} is {v}", "{c} is on {v}"),
    "gt": ("{c} is after {v}", "{c} is later than {v}"),
    "lt": ("{c} is before {v}", "{c} is earlier than {v}"),
    "ge": ("{c} is on or after {v}",),
    "le": ("{c} is on or before {v}",),
    "between": ("{c} is between {v} and {w}", "{c} is from {v} to {w}"),
}
# After "with".
_PHRASES: dict[str, tuple[str, ...]] = {
    "eq": ("{c} {v}", "{c} equal to {v}"),
    "ne": ("{c} other than {v}",),
    "gt": ("{c} over {v}", "{c} above {v}", "{ac} greater than {v}", "{ac} of more than {v}"),
    "lt": ("{c} under {v}", "{c} below {v}", "{ac} of less than {v}"),
    "ge": ("{ac} of at least {v}", "{ac} of {v} or more"),
    "le": ("{ac} of at most {v}", "{ac} of {v} or less"),
    "between": ("{ac} between {v} and {w}", "{ac} from {v} to {w}"),
    "in": ("{c} {v}",),
    "contains": ("{ac} containing '{v}'",),
    "starts": ("{ac} starting with '{v}'",),
    "ends": ("{ac} ending in '{v}'", "{ac} ending with '{v}'"),
    "null": ("no {c}", "no recorded {c}"),
    "not_null": ("a recorded {c}",),
    "year": ("{ac} in {v}",),
    "month": ("{ac} in {v}",),
}
_DATE_PHRASES: dict[str, tuple[str, ...]] = {
    "eq": ("{c} {v}",),
    "gt": ("{ac} after {v}", "{ac} later than {v}"),
    "lt": ("{ac} before {v}", "{ac} earlier than {v}"),
    "ge": ("{ac} on or after {v}",),
    "le": ("{ac} on or before {v}",),
    "between": ("{ac} between {v} and {w}", "{ac} from {v} to {w}"),
}
_AGGREGATES: dict[str, tuple[str, ...]] = {
    "AVG": ("average", "average", "mean"),
    "SUM": ("total", "total", "sum of the"),
    "MIN": ("lowest", "minimum", "smallest"),
    "MAX": ("highest", "maximum", "largest"),
}
_DATE_AGGREGATES = {"MIN": ("earliest", "first"), "MAX": ("latest", "most recent")}
_THAN: dict[str, tuple[str, ...]] = {
    "gt": ("more than {v}", "over {v}"),
    "ge": ("at least {v}", "{v} or more"),
    "lt": ("fewer than {v}", "less than {v}"),
    "le": ("at most {v}", "{v} or fewer"),
}
_THAN_VALUE: dict[str, tuple[str, ...]] = {
    "gt": ("above {v}", "over {v}", "greater than {v}"),
    "ge": ("at least {v}",),
    "lt": ("below {v}", "under {v}", "less than {v}"),
    "le": ("at most {v}",),
}


def plural(noun: str) -> str:
    """The plural of an English noun phrase by the regular rules; other scripts stay as they are."""
    head, _, last = noun.rpartition(" ")
    lower = last.lower()
    if not re.search(r"[a-z]$", lower) or lower in _UNCOUNTABLE or re.search(r"[^s]s$", lower):
        return noun
    if re.search(r"[^aeiou]y$", lower):
        last = last[:-1] + "ies"
    elif re.search(r"(s|x|z|ch|sh)$", lower):
        last += "es"
    elif lower in ("person", "child", "man", "woman"):
        last = {"person": "people", "child": "children", "man": "men", "woman": "women"}[lower]
    else:
        last += "s"
    return f"{head} {last}" if head else last


def singular(noun: str) -> str:
    """The singular of an English noun phrase: a table is often named in the plural."""
    head, _, last = noun.rpartition(" ")
    lower = last.lower()
    if re.search(r"[^aeiou]ies$", lower) and len(lower) > 4:
        last = last[:-3] + "y"
    elif re.search(r"(ss|x|z|ch|sh)es$", lower):
        last = last[:-2]
    elif re.search(r"[^sui]s$", lower) and len(lower) > 3:
        last = last[:-1]
    elif lower in ("people", "children", "men", "women"):
        last = {"people": "person", "children": "child", "men": "man", "women": "woman"}[lower]
    return f"{head} {last}" if head else last


def article(noun: str) -> str:
    """``noun`` after "a" or "an"; a plural takes neither."""
    last = noun.split(" ")[-1].lower()
    if re.search(r"[^s]s$", last) or last in _UNCOUNTABLE:
        return noun
    vowel = re.match(r"[aeio]|u(?!ni|se|s\b)", noun.lower()) and not re.match(
        r"one|eu", noun.lower()
    )
    return f"an {noun}" if vowel else f"a {noun}"


class English:
    """Spells parts of one question; a table keeps one of its names throughout."""

    def __init__(self, random: Random, synonyms: float) -> None:
        self.random = random
        self.synonyms = synonyms
        self._names: dict[int, str] = {}

    def fill(self, frame: str, parts: dict[str, Part]) -> str:
        """``frame`` with its slots filled from ``parts``."""
        spelt: dict[str, str] = {}

        def slot(match: re.Match[str]) -> str:
            if match[0] not in spelt:
                spelt[match[0]] = self._slot(match[1], parts)
            return spelt[match[0]]

        return re.sub(r"\{(\w+)\}", slot, frame)

    def _slot(self, slot: str, parts: dict[str, Part]) -> str:
        if slot in ("a_key", "an_agg"):
            return article(self._part(parts[slot.rpartition("_")[2]], ""))
        if slot in parts:
            return self._part(parts[slot], "", slot)
        name, _, form = slot.rpartition("_")
        return self._part(parts[name], form, name)

    def _part(self, part: Part, form: str, slot: str = "") -> str:
        match part:
            case Noun():
                return self._noun(part, one=form == "one", slot=slot)
            case Columns():
                return self._columns(part, many=form == "many")
            case FieldOf() if form == "is":
                name = self._label(part.field)
                return f"{name} are" if _is_plural(name) else f"{name} is"
            case FieldOf():
                return self._field_of(part, form)
            case Aggregates():
                return self._aggregates(part)
            case Extreme():
                return self._extreme(part, slot)
            case Than():
                forms = _THAN if part.counted else _THAN_VALUE
                return self._choose(forms[part.operator]).format(v=_value(part.value))
            case Named():
                return f"the {singular(self._name(part.entity))} {part.value}"
            case Period():
                return part.unit
            case number:
                return str(number)

    def _choose(self, forms: tuple[str, ...]) -> str:
        return self.random.choice(forms)

    def _label(self, item: Entity | Field) -> str:
        """One name for a table or column, the same throughout one question."""
        if id(item) not in self._names:
            labels = item.labels["en"]
            other = len(labels) > 1 and self.random.random() < self.synonyms
            self._names[id(item)] = self.random.choice(labels[1:]) if other else labels[0]
        return self._names[id(item)]

    def _name(self, entity: Entity) -> str:
        return self._label(entity)

    def _columns(self, part: Columns, many: bool) -> str:
        names = [self._owned(field, part.owner) for field in part.fields]
        names = [plural(name) for name in names] if many else names
        return _join(names, "and")

    def _owned(self, field: Field, owner: Entity | None) -> str:
        """A column with its table's name before it, unless it begins with that: "order date"."""
        label = self._label(field)
        name = singular(self._name(owner)) if owner else ""
        return f"{name} {label}".strip() if not label.startswith(name + " ") else label

    def _field_of(self, part: FieldOf, form: str) -> str:
        name = self._owned(part.field, part.owner)
        return plural(name) if form == "many" else name

    def _aggregates(self, part: Aggregates) -> str:
        field = part.items[0][1]
        forms = _DATE_AGGREGATES if field.role == "date" else _AGGREGATES
        spelt = [self._choose(forms[function]) for function, _ in part.items]
        label = self._label(field)
        if spelt == ["sum of the"]:
            return f"sum of the {plural(label)}"
        words = ["total" if word == "sum of the" else word for word in spelt]
        return f"{' and '.join(words)} {label}"

    def _extreme(self, part: Extreme, slot: str) -> str:
        match slot:
            case "most":
                return "most" if part.high else "fewest"
            case "side":
                return self._choose(
                    ("above", "higher than") if part.high else ("below", "lower than")
                )
            case "bound":
                if part.date:
                    return "latest" if part.high else "earliest"
                return "maximum" if part.high else "minimum"
            case "direction":
                return "descending" if part.high else "ascending"
            case "from_to":
                return self._from_to(part)
        if part.date:
            return self._choose(("latest", "most recent") if part.high else ("earliest",))
        return self._choose(("highest", "largest") if part.high else ("lowest", "smallest"))

    def _from_to(self, part: Extreme) -> str:
        low, high = ("earliest", "latest") if part.date else ("lowest", "highest")
        return f"from {high} to {low}" if part.high else f"from {low} to {high}"

    def _noun(self, noun: Noun, one: bool, slot: str) -> str:
        name = self._name(noun.entity)
        name = singular(name) if one else plural(singular(name))
        conditions = list(noun.conditions)
        if len(conditions) and noun.joiner == "AND" and self.random.random() < 0.2:
            first = next((item for item in conditions if _is_adjective(item)), None)
            if first is not None:
                conditions.remove(first)
                name = f"{first.values[0]} {name}"
        text = " ".join(part for part in (name, self._conditions(noun, conditions)) if part)
        return f"{text} of {self._noun(noun.owner, False, slot)}" if noun.owner else text

    def _conditions(self, noun: Noun, conditions: list[Condition]) -> str:
        if not conditions:
            return ""
        style = self.random.choices(("whose", "with", "where the"), (55, 30, 15))[0]
        forms = [self._condition(condition, style == "with") for condition in conditions]
        link = f" {noun.joiner.lower()} "
        if style != "with" and self.random.random() < 0.5:
            link += f"{style} " if style == "whose" else "the "
        return f"{style} {link.join(forms)}"

    def _condition(self, condition: Condition, phrase: bool) -> str:
        dated = condition.field.role == "date"
        usual, dates = (_PHRASES, _DATE_PHRASES) if phrase else (_CLAUSES, _DATE_CLAUSES)
        forms = dates.get(condition.operator) if dated else None
        form = self._choose(forms or usual[condition.operator])
        label = self._label(condition.field)
        values = [_value(value, condition.field) for value in condition.values]
        if condition.operator in ("eq", "ne", "in") and needs_quotes(condition):
            values = [f"'{value}'" for value in values]
        if condition.operator == "in":
            values = [_join(values, "or")]
        elif condition.operator == "month":
            year, month = str(condition.values[0]).split("-")
            values = [f"{_MONTHS[int(month) - 1]} {year}"]
        first, second = (*values, "", "")[:2]
        if not phrase and _is_plural(label):
            form = form.replace("{c} is ", "{c} are ")
        return form.format(c=label, ac=article(label), v=first, w=second)


def _is_plural(noun: str) -> bool:
    return re.search(r"[^sui]s$", noun) is not None


def _is_adjective(condition: Condition) -> bool:
    """Whether a value can stand before the noun: "VIP customers"."""
    field = condition.field
    return (
        condition.operator == "eq" and field.role == "category" and len(field.column.samples) <= 16
    )


def _value(value: Value, field: Field | None = None) -> str:
    if field is not None and field.role == "flag":
        return "true" if value else "false"
    return value if isinstance(value, str) else plain(value)


def _join(words: list[str], word: str) -> str:
    if len(words) < 3:
        return f" {word} ".join(words)
    return f"{', '.join(words[:-1])} {word} {words[-1]}"
