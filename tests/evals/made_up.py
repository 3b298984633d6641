"""Made-up but realistic answers of a model about the sample shop, with their real rows."""

from hone.core.errors import RequestError
from hone.core.seeds import rng
from hone.evals.records import Preview, Scored
from hone.evals.report import ReportInputs
from hone.evals.summary import Variant

SPLITS = ("unseen_queries", "unseen_phrasings")

# pattern, hardness, Korean, English, gold, a wrong query, whether the wrong one is "exact"
CASES = [
    (
        "filter.equals",
        "easy",
        "서울에 사는 고객의 이름은?",
        "What are the names of customers who live in Seoul?",
        "SELECT name FROM customers WHERE city = '서울'",
        "SELECT name FROM customers WHERE city = '부산'",
        True,
    ),
    (
        "aggregate.max",
        "easy",
        "가장 비싼 상품의 가격을 알려줘",
        "What is the price of the most expensive product?",
        "SELECT MAX(price) FROM products",
        "SELECT MIN(price) FROM products",
        False,
    ),
    (
        "is_null",
        "easy",
        "이메일이 없는 고객은 몇 명이야?",
        "How many customers have no email?",
        "SELECT COUNT(*) FROM customers WHERE email IS NULL",
        "SELECT COUNT(*) FROM customers WHERE email = NULL",
        False,
    ),
    (
        "group.count",
        "medium",
        "도시별 매장 수를 보여줘",
        "Show the number of stores in each city.",
        "SELECT city, COUNT(*) FROM stores GROUP BY city",
        "SELECT kind, COUNT(*) FROM stores GROUP BY kind",
        False,
    ),
    (
        "join.filter",
        "medium",
        "평점이 5인 리뷰가 달린 상품의 이름과 브랜드는?",
        "Give the name and brand of products that have a review rated 5.",
        "SELECT DISTINCT T1.name, T1.brand FROM products AS T1 JOIN reviews AS T2 "
        "ON T1.id = T2.product_id WHERE T2.rating = 5",
        "SELECT DISTINCT T1.name, T1.brand FROM products AS T1 JOIN reviews AS T2 "
        "ON T1.id = T2.product_id WHERE T2.rating > 5",
        False,
    ),
    (
        "dates.between",
        "medium",
        "2023년에 입사한 직원을 급여가 높은 순으로 3명",
        "The three best paid employees hired in 2023",
        "SELECT name FROM employees WHERE hired_on BETWEEN '2023-01-01' AND '2023-12-31' "
        "ORDER BY salary DESC LIMIT 3",
        "SELECT name FROM employees WHERE hired_on BETWEEN '2023-01-01' AND '2023-12-31' "
        "ORDER BY salary LIMIT 3",
        False,
    ),
    (
        "nested.average",
        "hard",
        "평균보다 급여가 많은 직원의 이름과 직급은?",
        "List name and position of employees who earn more than the average.",
        "SELECT name, position FROM employees WHERE salary > (SELECT AVG(salary) FROM employees)",
        "SELECT name, position FROM employees WHERE salary > (SELECT AVG(salary) FROM stores)",
        False,
    ),
    (
        "exists.not",
        "hard",
        "리뷰가 하나도 없는 상품을 모두 찾아줘",
        "Find all products without a single review.",
        "SELECT name FROM products AS T1 WHERE NOT EXISTS "
        "(SELECT 1 FROM reviews AS T2 WHERE T2.product_id = T1.id)",
        "SELECT name FROM products WHERE id NOT IN (SELECT product FROM reviews)",
        False,
    ),
    (
        "join.group.having",
        "extra",
        "주문이 100건을 넘는 매장의 이름과 주문 수를 많은 순서대로",
        "Names of stores with more than 100 orders and how many, most first",
        "SELECT T1.name, COUNT(*) FROM stores AS T1 JOIN orders AS T2 ON T1.id = T2.store_id "
        "GROUP BY T1.id HAVING COUNT(*) > 100 ORDER BY COUNT(*) DESC",
        "SELECT T1.name, COUNT(*) FROM stores AS T1 JOIN orders AS T2 ON T1.id = T2.store_id "
        "GROUP BY T1.id HAVING COUNT(*) > 10 ORDER BY COUNT(*) DESC",
        True,
    ),
    (
        "set.except",
        "extra",
        "고객은 있지만 매장은 없는 도시는 어디야?",
        "Which cities have customers but no store?",
        "SELECT city FROM customers EXCEPT SELECT city FROM stores",
        "SELECT city FROM customers EXCEPT city FROM stores",
        False,
    ),
]
_RIGHT = {"easy": 0.99, "medium": 0.97, "hard": 0.93, "extra": 0.88}


def made_up_records(database, count=1000, loss=0.0):
    """``count`` answers, right about as often as a good model's; ``loss`` lowers that share."""
    results = {}

    def run(sql):
        if sql not in results:
            try:
                found = database.execute(sql)
                results[sql] = Preview.of(found.columns, found.rows, 5), None
            except RequestError as error:
                results[sql] = None, str(error)
        return results[sql]

    records = []
    stream = rng(0, "made-up")
    for index in range(count):
        pattern, hardness, korean, english, gold, wrong, exact = CASES[
            index // 4 % len(CASES) if index < 400 else stream.randrange(len(CASES))
        ]
        split = SPLITS[index % 2]
        language = ("ko", "en")[index // 2 % 2]
        share = _RIGHT[hardness] - loss - (0.08 if split == SPLITS[1] else 0)
        right = stream.random() < share
        predicted = gold if right else wrong
        result, error = run(predicted)
        records.append(
            Scored(
                question=korean if language == "ko" else english,
                language=language,
                hardness=hardness,
                split=split,
                pattern=pattern,
                gold=gold,
                predicted=predicted,
                ok=right,
                exact=right or exact,
                error=error,
                result=result,
                gold_result=run(gold)[0],
            )
        )
    return records


def made_up_inputs(database, schema, **changed):
    """Inputs of a whole report."""
    stream = rng(0, "losses")
    losses = tuple(
        (step, 7.6 * 0.985 ** min(step, 260) * stream.uniform(0.85, 1.15) + 0.03 * 0.999**step)
        for step in range(1, 1201)
    )
    fields = {
        "title": "The shop, asked in Korean and English",
        "database": "shop.sqlite",
        "schema": schema,
        "variants": (
            Variant("fp32", tuple(made_up_records(database)), 12_640_256, 2_310.4),
            Variant("int8", tuple(made_up_records(database, loss=0.004)), 3_512_880, 2_893.1),
        ),
        "losses": losses,
        "prompt": "서울에 사는 고객의 이름은?\ncustomers.city = '서울'\nSQL:",
        "completion": " SELECT name FROM customers WHERE city = '서울'<eos>",
        "decoding": {
            "method": "greedy",
            "max_tokens": 200,
            "stop": ["<eos>"],
            "batch_tokens": 8192,
        },
        "stage_seconds": {
            "database": 1.2,
            "questions": 41.0,
            "tokenizer": 6.3,
            "train": 312.4,
            "checkpoint": 0.4,
            "eval": 38.0,
            "int8": 0.9,
            "eval-int8": 31.5,
        },
        "parameters": 3_158_016,
        "manifest": {
            "hone": "0.1.0",
            "recipe": {
                "name": "demo",
                "seed": 0,
                "data": {"database": "sample", "languages": ["ko", "en"], "questions": 40_000},
                "model": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 704},
                "train": {"steps": 1200, "optimizer": "muon", "compile": False},
            },
            "inputs": {"database": {"file": "sample", "sha256": None}},
            "outputs": {"checkpoint/model.safetensors": "5f" * 32},
            "machine": {"processor": "AMD EPYC", "threads": 2, "python": "3.11.9"},
            "libraries": {"torch": "2.13.0", "numpy": "2.4.0"},
        },
        "goals": {"unseen_queries": 0.95, "unseen_phrasings": 0.85},
        "next_commands": (
            'hone ask runs/demo "서울에 사는 고객은 몇 명이야?"',
            "hone chat runs/demo",
        ),
    }
    return ReportInputs(**{**fields, **changed})
