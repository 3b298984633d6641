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
from hone.text.korean import attach, fill

# A stem and its endings before a noun, before "and" and before "or".
Predicate = tuple[str, tuple[str, str, str]]
_COPULA = ("인", "이고", "이거나")
_HAVE = ("있는", "있고", "있거나")
_LACK = ("없는", "없고", "없거나")

_PREDICATES: dict[str, tuple[Predicate, ...]] = {
    "eq": (("{c}이/가 {v}", _COPULA),),
    "ne": (("{c}이/가 {v}이/가 아", ("닌", "니고", "니거나")),),
    "gt": (
        ("{c}이/가 {v} 초과", _COPULA),
        ("{c}이/가 {v}보다 ", ("큰", "크고", "크거나")),
        ("{c}이/가 {v}을/를 넘", ("는", "고", "거나")),
    ),
    "lt": (
        ("{c}이/가 {v} 미만", _COPULA),
        ("{c}이/가 {v}보다 ", ("작은", "작고", "작거나")),
    ),
    "ge": (("{c}이/가 {v} 이상", _COPULA),),
    "le": (("{c}이/가 {v} 이하", _COPULA),),
    "between": (
        ("{c}이/가 {v} 이상 {w} 이하", _COPULA),
        ("{c}이/가 {v}에서 {w} 사이", _COPULA),
    ),
    "in": (("{c}이/가 {v}", _COPULA),),
    "contains": (
        ("{c}에 '{v}'이/가 들어가", ("는", "고", "거나")),
        ("{c}에 '{v}'이/가 포함", ("된", "되고", "되거나")),
    ),
    "starts": (("{c}이/가 '{v}'으로/로 시작하", ("는", "고", "거나")),),
    "ends": (("{c}이/가 '{v}'으로/로 끝나", ("는", "고", "거나")),),
    "null": (("{c}이/가 ", _LACK), ("{c}이/가 비어 ", _HAVE)),
    "not_null": (("{c}이/가 ", _HAVE),),
    "year": (("{c}이/가 {v}", _COPULA),),
    "month": (("{c}이/가 {v}", _COPULA),),
}
# 이전 and 이후 include the day itself (표준국어대사전), 전 and 후 do not.
_DATE_PREDICATES: dict[str, tuple[Predicate, ...]] = {
    "gt": (
        ("{c}이/가 {v}보다 ", ("늦은", "늦고", "늦거나")),
        ("{c}이/가 {v} 보다 나중", _COPULA),
    ),
    "lt": (
        ("{c}이/가 {v}보다 ", ("이른", "이르고", "이르거나")),
        ("{c}이/가 {v} 전", _COPULA),
    ),
    "ge": (("{c}이/가 {v} 이후", _COPULA),),
    "le": (("{c}이/가 {v} 이전", _COPULA),),
    "between": (
        ("{c}이/가 {v}부터 {w} 사이", _COPULA),
        ("{c}이/가 {v}에서 {w} 사이", _COPULA),
    ),
}
_AGGREGATES: dict[str, tuple[str, ...]] = {
    "AVG": ("평균 {x}", "평균 {x}", "{x} 평균"),
    "SUM": ("총 {x}", "{x} 합계", "{x} 총합"),
    "MIN": ("최저 {x}", "{x} 최솟값", "가장 낮은 {x}"),
    "MAX": ("최고 {x}", "{x} 최댓값", "가장 높은 {x}"),
}
_DATE_AGGREGATES = {
    "MIN": ("가장 이른 {x}", "가장 빠른 {x}"),
    "MAX": ("가장 늦은 {x}", "가장 최근 {x}"),
}
_THAN: dict[str, tuple[tuple[str, str], ...]] = {
    "gt": (("{v}보다 많은", "{v}보다 많이 있어"), ("{v} 초과인", "{v} 초과로 있어")),
    "ge": (("{v} 이상인", "{v} 이상 있어"),),
    "lt": (("{v}보다 적은", "{v}보다 적게 있어"), ("{v} 미만인", "{v} 미만으로 있어")),
    "le": (("{v} 이하인", "{v} 이하로 있어"),),
}
_THAN_VALUE: dict[str, tuple[str, ...]] = {
    "gt": ("{v}보다 큰", "{v} 초과인", "{v}보다 높은"),
    "ge": ("{v} 이상인",),
    "lt": ("{v}보다 작은", "{v} 미만인", "{v}보다 낮은"),
    "le": ("{v} 이하인",),
}

# The counter of a noun by how it ends.
_COUNTERS = (
    (
        "명",
        "고객 회원 직원 사원 학생 교사 강사 선생 교수 사람 사용자 이용자 환자 의사 선수 가수 배우 "
        "작가 저자 감독 승객 손님 담당자 관리자 주민 인물 기자 위원 구성원 참가자 판매자 구매자 "
        "person people customer employee student teacher user singer player member patient author",
    ),
    ("건", "주문 거래 리뷰 후기 예약 결제 배송 문의 계약 기록 로그 사건 신고 신청 요청"),
    (
        "곳",
        "매장 점포 지점 회사 업체 거래처 식당 병원 학교 도시 호텔 공항 은행 부서 기관 지역 국가",
    ),
)


def counter(noun: str) -> str:
    """The word that counts ``noun``: 명 for people, 건 for affairs, 곳 for places, else 개."""
    for word, nouns in _COUNTERS:
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
                owner = f"{self._label(part.owner)} " if part.owner else ""
                return owner + self._label(part.field)
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
        names = [self._label(field) for field in part.fields]
        if part.owner:
            # "고객의 이름과 도시", but "고객 이름" reads better for one.
            link = " " if len(names) == 1 else "의 "
            names[0] = self._label(part.owner) + link + names[0]
        if len(names) == 2 and self.random.random() < 0.75:
            return f"{attach(names[0], '과/와')} {names[1]}"
        return ", ".join(names)

    def _aggregates(self, part: Aggregates) -> str:
        field = part.items[0][1]
        label = self._label(field)
        if len(part.items) > 1:
            dated = {"MIN": "가장 이른 날", "MAX": "가장 늦은 날"}
            plain = {"AVG": "평균", "SUM": "합계", "MIN": "최솟값", "MAX": "최댓값"}
            words = dated if field.role == "date" else plain
            first, second = (words[function] for function, _ in part.items)
            return f"{label} {attach(first, '과/와')} {second}"
        forms = _DATE_AGGREGATES if field.role == "date" else _AGGREGATES
        return self.random.choice(forms[part.items[0][0]]).format(x=label)

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
            case "bound" if not part.date:
                return "최댓" if part.high else "최솟"
        if part.date:
            return self.random.choice(("늦은", "최근인") if part.high else ("이른", "빠른"))
        return self.random.choice(("높은", "큰") if part.high else ("낮은", "작은"))

    def _than(self, part: Than, form: str) -> str:
        if part.counted is None:
            return self.random.choice(_THAN_VALUE[part.operator]).format(v=_number(part.value))
        number = f"{_number(part.value)}{counter(self._label(part.counted))}"
        plain, there = self.random.choice(_THAN[part.operator])
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
        forms = _DATE_PREDICATES.get(condition.operator) if dated else None
        stem, endings = self.random.choice(forms or _PREDICATES[condition.operator])
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
