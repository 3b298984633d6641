"""The rows of the sample shop, drawn from a fixed seed with the skews that real shops have."""

from collections.abc import Callable
from datetime import date, timedelta
from random import Random
from typing import TypeVar

from hone.core.seeds import rng
from hone.sql.sample.words import (
    BRANDS,
    CATEGORIES,
    CITIES,
    COMMENTS,
    ENGLISH_GIVEN,
    ENGLISH_SURNAMES,
    GIVEN_NAMES,
    STORES,
    SUPPLIERS,
    SURNAMES,
)

Row = tuple[int | float | str | None, ...]
Item = TypeVar("Item")

_SEED = 20241231
_CUSTOMERS, _PRODUCTS, _EMPLOYEES, _ORDERS, _REVIEWS = 1200, 360, 150, 3600, 1800
_FIRST_DAY, _LAST_DAY = date(2022, 1, 1), date(2024, 12, 31)


def _pick(random: Random, weighted: dict[Item, int]) -> Item:
    return random.choices(list(weighted), list(weighted.values()))[0]


def _day(random: Random, first: date, last: date) -> date:
    return first + timedelta(days=random.randrange((last - first).days + 1))


def _unique_names(random: Random, count: int, english: float) -> list[str]:
    """``count`` different names of people, a share ``english`` of them in English."""
    names: dict[str, None] = {}
    while len(names) < count:
        if random.random() < english:
            name = f"{random.choice(ENGLISH_GIVEN)} {random.choice(ENGLISH_SURNAMES)}"
        else:
            name = random.choice(SURNAMES) + random.choice(GIVEN_NAMES)
        names[name] = None
    return list(names)


def _customers(random: Random) -> list[Row]:
    names = _unique_names(random, 700, english=0.14)
    rows: list[Row] = []
    for key in range(1, _CUSTOMERS + 1):
        # Some people share a name, as in life.
        name = names[key - 1] if key <= len(names) else random.choice(names)
        gender = _pick(random, {"여성": 54, "남성": 46})
        city = _pick(random, dict(CITIES))
        birth = _day(random, date(1955, 1, 1), date(2006, 12, 31))
        joined = _day(random, date(2018, 1, 1), date(2024, 11, 30))
        grade = _pick(random, {"Bronze": 46, "Silver": 30, "Gold": 17, "VIP": 7})
        points = int(random.lognormvariate(7.2, 1.0)) * 10
        email = f"user{key:04d}@example.com" if random.random() > 0.12 else None
        phone = f"010-{random.randrange(2000, 9999)}-{random.randrange(1000, 9999)}"
        rows.append((key, name, gender, city, str(birth), grade, points, email, phone, str(joined)))
    return rows


def _products(random: Random) -> list[Row]:
    rows: list[Row] = []
    names: set[str] = set()
    categories = list(CATEGORIES.values())
    while len(rows) < _PRODUCTS:
        category = random.randrange(len(categories))
        _, goods, low, high, heaviest = categories[category]
        brand = _pick(random, {name: 20 - index for index, name in enumerate(BRANDS)})
        name = f"{brand} {random.choice(goods.split(','))}"
        if name in names:
            name = f"{name} {random.choice(('S', 'Pro', 'Max', 'Mini', 'Plus', '2', '3'))}"
        if name in names:
            continue
        names.add(name)
        price = int(low * (high / low) ** random.random()) // 100 * 100
        stock = 0 if random.random() < 0.05 else int(random.expovariate(1 / 90)) + 1
        weight = int(heaviest * random.uniform(0.2, 1)) if random.random() > 0.1 else None
        launched = _day(random, date(2019, 1, 1), date(2024, 10, 31))
        supplier = 1 + min(int(random.expovariate(1 / 6)), len(SUPPLIERS) - 1)
        key = len(rows) + 1
        rows.append((key, name, brand, category + 1, supplier, price, stock, weight, str(launched)))
    return rows


def _employees(random: Random) -> list[Row]:
    """Each store has one head; the others report to somebody of their store hired before them."""
    rows: list[Row] = []
    staff: dict[int, list[int]] = {}
    pay = {"점장": 5_200, "매니저": 4_100, "사원": 3_100, "인턴": 2_400}
    for key, name in enumerate(_unique_names(random, _EMPLOYEES, english=0.08), start=1):
        store = key if key <= len(STORES) else 1 + int(len(STORES) * random.random() ** 1.6)
        colleagues = staff.setdefault(store, [])
        position = "점장" if not colleagues else _pick(random, {"매니저": 2, "사원": 6, "인턴": 2})
        manager = colleagues[int(len(colleagues) * random.random() ** 2)] if colleagues else None
        colleagues.append(key)
        salary = int(pay[position] * random.uniform(0.88, 1.22)) * 10_000
        hired = _day(random, date.fromisoformat(STORES[store - 1][4]), date(2024, 9, 30))
        rows.append((key, name, store, manager, position, salary, str(hired)))
    return rows


def _orders(random: Random, customers: list[Row], employees: list[Row]) -> list[Row]:
    by_store: dict[int, list[int]] = {}
    for employee in employees:
        by_store.setdefault(int(employee[2] or 0), []).append(int(employee[0] or 0))
    loyal = [random.paretovariate(1.3) for _ in customers]
    days = sorted(
        _LAST_DAY - timedelta(days=int((_LAST_DAY - _FIRST_DAY).days * random.random() ** 1.4))
        for _ in range(_ORDERS)
    )
    # A tenth of the customers never order.
    buyers = [index for index in range(len(customers)) if random.random() > 0.1]
    weights = [min(loyal[index], 12) for index in buyers]
    rows: list[Row] = []
    for key, day in enumerate(days, start=1):
        customer = 1 + random.choices(buyers, weights)[0]
        store = 1 + int(len(STORES) * random.random() ** 1.7)
        channel = _pick(random, {"온라인": 58, "매장": 34, "전화": 8})
        helper = None if channel == "온라인" else random.choice(by_store[store])
        status = _pick(
            random, {"delivered": 68, "shipped": 10, "paid": 9, "cancelled": 8, "returned": 5}
        )
        payment = _pick(random, {"신용카드": 55, "간편결제": 28, "계좌이체": 11, "현금": 6})
        arrives = status in ("delivered", "returned")
        delivered = (
            str(day + timedelta(days=random.choice((1, 1, 2, 2, 3, 4, 6)))) if arrives else None
        )
        fee = 0 if channel == "매장" else random.choice((0, 2500, 3000, 3000, 4000, 5500))
        rows.append(
            (key, customer, store, helper, str(day), status, channel, payment, fee, delivered)
        )
    return rows


def _order_items(random: Random, orders: list[Row], products: list[Row]) -> list[Row]:
    rows: list[Row] = []
    # A few products never sell.
    sold = [row for row in products if random.random() > 0.06]
    weights = [random.paretovariate(1.1) for _ in sold]
    weights = [min(weight, 25) for weight in weights]
    for order in orders:
        count = _pick(random, {1: 42, 2: 28, 3: 17, 4: 9, 5: 4})
        basket = {int(row[0] or 0): row for row in random.choices(sold, weights, k=count)}
        for product, row in sorted(basket.items()):
            quantity = _pick(random, {1: 62, 2: 22, 3: 9, 4: 4, 5: 3})
            discount = _pick(random, {0: 66, 5: 14, 10: 12, 20: 6, 30: 2})
            price = int(row[5] or 0) * (100 - discount) // 10_000 * 100
            rows.append((order[0], product, quantity, price, discount))
    return rows


def _reviews(random: Random, orders: list[Row], items: list[Row]) -> list[Row]:
    """Reviews are written by those who bought the product, after they did."""
    rows: list[Row] = []
    for product_row in sorted(random.sample(items, _REVIEWS)):
        order = orders[int(product_row[0] or 0) - 1]
        rating = _pick(random, {5: 38, 4: 31, 3: 16, 2: 8, 1: 7})
        comment = random.choice(COMMENTS[rating]) if random.random() > 0.25 else None
        bought = date.fromisoformat(str(order[4]))
        written = min(bought + timedelta(days=random.randrange(2, 40)), _LAST_DAY)
        votes = int(random.expovariate(1 / 4))
        key = len(rows) + 1
        rows.append((key, product_row[1], order[1], rating, comment, votes, str(written)))
    return rows


def shop_rows() -> dict[str, list[Row]]:
    """Every table's rows in the order of its columns; the same on every machine."""

    def draw(name: str, make: Callable[..., list[Row]], *parents: list[Row]) -> list[Row]:
        return make(rng(_SEED, "shop", name), *parents)

    phones = rng(_SEED, "shop", "stores")
    stores: list[Row] = [
        (key, name, city, kind, area, opened, f"070-{phones.randrange(300, 999)}-{key:04d}")
        for key, (name, city, kind, area, opened) in enumerate(STORES, start=1)
    ]
    customers = draw("customers", _customers)
    products = draw("products", _products)
    employees = draw("employees", _employees)
    orders = draw("orders", _orders, customers, employees)
    items = draw("order_items", _order_items, orders, products)
    return {
        "categories": [
            (key, name, entry[0]) for key, (name, entry) in enumerate(CATEGORIES.items(), start=1)
        ],
        "suppliers": [(key, *row) for key, row in enumerate(SUPPLIERS, start=1)],
        "products": products,
        "stores": stores,
        "employees": employees,
        "customers": customers,
        "orders": orders,
        "order_items": items,
        "reviews": draw("reviews", _reviews, orders, items),
    }
