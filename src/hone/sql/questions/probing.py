"""Asking the database whether a question is worth asking: it has an answer, and only one."""

from hone.core.errors import RequestError
from hone.sql.execute import Database
from hone.sql.questions.fields import Entity
from hone.sql.questions.intents import Intent, Noun

Rows = list[tuple[object, ...]]

# Steps and not seconds decide which queries are too slow, so that every machine asks the same.
_QUERY_STEPS = 20_000_000
_QUERY_SECONDS = 600.0
_ROW_CAP = 20_000
# To see that an answer is there, its first rows do.
_ENOUGH = 12
# Kinds that may ask about a single row; counting or sorting one says nothing.
_OF_ONE_ROW = frozenset({"filter", "rows"})
_KEPT = 50_000


class Probe:
    """Runs queries with a time limit and remembers what they said."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._rows: dict[str, Rows | None] = {}
        self._matters: dict[str, int] = {}

    def rows(self, sql: str, first: int | None = None) -> Rows | None:
        """The rows of ``sql`` (its ``first`` ones); None when it fails, is slow or has too many."""
        try:
            cap = _ROW_CAP if first is None else first
            result = self.database.execute(
                sql, row_cap=cap, timeout_s=_QUERY_SECONDS, most_steps=_QUERY_STEPS
            )
        except RequestError:
            return None
        return None if result.truncated and first is None else result.rows

    def remembered(self, sql: str) -> Rows | None:
        """The same as :meth:`rows`, asked once: for the small queries that recur."""
        if sql not in self._rows:
            if len(self._rows) > _KEPT:
                self._rows.clear()
            self._rows[sql] = self.rows(sql)
        return self._rows[sql]

    def count(self, entity: Entity) -> int:
        """The number of rows of a table; 0 when it cannot be counted in time."""
        rows = self.remembered(f"SELECT COUNT(*) FROM {entity.sql}")
        return int(rows[0][0]) if rows else 0  # type: ignore[call-overload]

    def is_good(self, intent: Intent) -> bool:
        """Whether ``intent`` has an answer that is neither empty, nor trivial, nor arbitrary."""
        least = 1 if intent.kind in _OF_ONE_ROW else 2
        if not all(self._noun_matters(noun, least) for noun in intent.nouns):
            return False
        rows = self.rows(intent.sql, max(_ENOUGH, intent.at_least))
        if not rows or len(rows) < intent.at_least:
            return False
        if len(rows) == 1 and all(value in (None, 0) for value in rows[0]):
            return False
        if intent.ranked and not self._is_ranked(intent):
            return False
        if not intent.unlike:
            return True
        size = self._size(intent.sql)
        return size is not None and all(
            self._size(sql) not in (None, size) for sql in intent.unlike
        )

    def _size(self, sql: str) -> object:
        """The number of rows of ``sql``, None where it cannot be counted in time."""
        rows = self.remembered(f"SELECT COUNT(*) FROM ({sql})")
        return rows[0][0] if rows else None

    def _noun_matters(self, noun: Noun, least: int) -> bool:
        """Whether the conditions select some rows, at least so many, and each has its effect."""
        if noun.owner is not None and not self._noun_matters(noun.owner, 1):
            return False
        tests = [condition.sql(False) for condition in noun.conditions]
        if not tests:
            return True
        key = f"{noun.entity.sql} {noun.where(False)}"
        if key not in self._matters:
            self._matters[key] = self._selected(noun, tests)
        return self._matters[key] >= least

    def _selected(self, noun: Noun, tests: list[str]) -> int:
        """How many rows pass; 0 if a test keeps or drops none, or is idle beside the others."""
        whole = f" {noun.joiner} ".join(tests)
        sums = ", ".join(f"SUM({test})" for test in (*tests, whole))
        rows = self.rows(f"SELECT COUNT(*), {sums} FROM {noun.entity.sql}")
        if not rows:
            return 0
        total, *parts = (int(value or 0) for value in rows[0])  # type: ignore[call-overload]
        joint = parts.pop()
        if not all(0 < part < total for part in parts) or not 0 < joint < total:
            return 0
        return joint if len(parts) == 1 or joint not in parts else 0

    def _is_ranked(self, intent: Intent) -> bool:
        rows = self.rows(intent.ranked)
        if not rows or len(rows) <= intent.at_least:
            return False
        order = [row[-1] for row in rows]
        return None not in order and all(one != next_ for one, next_ in zip(order, order[1:]))  # noqa: B905, RUF007
