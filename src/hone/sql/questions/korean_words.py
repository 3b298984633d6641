"""Korean words for the parts of a question: endings, comparisons, counters, adjectives."""

# ruff: noqa: E501 (a list of words stays on one line)

# A stem and its endings before a noun, before "and" and before "or".
Predicate = tuple[str, tuple[str, str, str]]
COPULA = ("인", "이고", "이거나")
HAVE = ("있는", "있고", "있거나")
LACK = ("없는", "없고", "없거나")

PREDICATES: dict[str, tuple[Predicate, ...]] = {
    "eq": (("{c}이/가 {v}", COPULA),),
    "ne": (("{c}이/가 {v}이/가 아", ("닌", "니고", "니거나")),),
    "gt": (
        ("{c}이/가 {v} 초과", COPULA),
        ("{c}이/가 {v}보다 ", ("큰", "크고", "크거나")),
        ("{c}이/가 {v}을/를 넘", ("는", "고", "거나")),
    ),
    "lt": (
        ("{c}이/가 {v} 미만", COPULA),
        ("{c}이/가 {v}보다 ", ("작은", "작고", "작거나")),
    ),
    "ge": (("{c}이/가 {v} 이상", COPULA),),
    "le": (("{c}이/가 {v} 이하", COPULA),),
    "between": (
        ("{c}이/가 {v} 이상 {w} 이하", COPULA),
        ("{c}이/가 {v}에서 {w} 사이", COPULA),
    ),
    "in": (("{c}이/가 {v}", COPULA),),
    "contains": (
        ("{c}에 '{v}'이/가 들어가", ("는", "고", "거나")),
        ("{c}에 '{v}'이/가 포함", ("된", "되고", "되거나")),
    ),
    "starts": (("{c}이/가 '{v}'으로/로 시작하", ("는", "고", "거나")),),
    "ends": (("{c}이/가 '{v}'으로/로 끝나", ("는", "고", "거나")),),
    "null": (("{c}이/가 ", LACK), ("{c}이/가 비어 ", HAVE)),
    "not_null": (("{c}이/가 ", HAVE),),
    "year": (("{c}이/가 {v}", COPULA),),
    "month": (("{c}이/가 {v}", COPULA),),
}
# 이전 and 이후 include the day itself (표준국어대사전), 전 and 후 do not.
DATE_PREDICATES: dict[str, tuple[Predicate, ...]] = {
    "gt": (
        ("{c}이/가 {v}보다 ", ("늦은", "늦고", "늦거나")),
        ("{c}이/가 {v}보다 나중", COPULA),
    ),
    "lt": (
        ("{c}이/가 {v}보다 ", ("이른", "이르고", "이르거나")),
        ("{c}이/가 {v} 전", COPULA),
    ),
    "ge": (("{c}이/가 {v} 이후", COPULA),),
    "le": (("{c}이/가 {v} 이전", COPULA),),
    "between": (
        ("{c}이/가 {v}부터 {w} 사이", COPULA),
        ("{c}이/가 {v}에서 {w} 사이", COPULA),
    ),
}
# The extremes take the adjective of what is measured (see ADJECTIVES).
AGGREGATES: dict[str, tuple[str, ...]] = {
    "AVG": ("평균 {x}", "평균 {x}", "{x} 평균"),
    "SUM": ("총 {x}", "{x} 합계", "{x} 총합"),
    "MIN": ("{least} {x}", "{x} 최솟값", "가장 {low} {x}"),
    "MAX": ("{most} {x}", "{x} 최댓값", "가장 {high} {x}"),
}
DATE_AGGREGATES = {
    "MIN": ("가장 이른 {x}", "가장 빠른 {x}"),
    "MAX": ("가장 늦은 {x}", "가장 최근 {x}"),
}
THAN: dict[str, tuple[tuple[str, str], ...]] = {
    "gt": (("{v}보다 많은", "{v}보다 많이 있어"), ("{v} 초과인", "{v} 초과로 있어")),
    "ge": (("{v} 이상인", "{v} 이상 있어"),),
    "lt": (("{v}보다 적은", "{v}보다 적게 있어"), ("{v} 미만인", "{v} 미만으로 있어")),
    "le": (("{v} 이하인", "{v} 이하로 있어"),),
}
THAN_VALUE: dict[str, tuple[str, ...]] = {
    "gt": ("{v}보다 큰", "{v} 초과인", "{v}보다 높은"),
    "ge": ("{v} 이상인",),
    "lt": ("{v}보다 작은", "{v} 미만인", "{v}보다 낮은"),
    "le": ("{v} 이하인",),
}

# The counter of a noun by how it ends.
COUNTERS = (
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

# What is high, much, heavy or wide, by how its name ends; the last one is for all else.
# (endings of names, adjectives for high and low, prefixes for the highest and lowest)
ADJECTIVES: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = (
    ("가격 단가 급여 연봉 임금 월급 비용 요금 배송비 평점 별점 점수 신뢰도 성적 학점 율 비율 온도 금액 높이 물가 순위 등급 고도",
     ("높은", "낮은"), ("최고", "최저")),
    ("수 수량 재고 재고량 포인트 적립금 나이 인구 인원 매출 매출액 판매량 양 예산 횟수", ("많은", "적은"), ("최대", "최소")),
    ("무게 중량 체중 몸무게", ("무거운", "가벼운"), ("최대", "최소")),
    ("면적 넓이 평수", ("넓은", "좁은"), ("최대", "최소")),
    ("길이 거리 기간 시간", ("긴", "짧은"), ("최대", "최소")),
    ("", ("큰", "작은"), ("최대", "최소")),
)  # fmt: skip
