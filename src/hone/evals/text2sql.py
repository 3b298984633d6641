"""Scoring predicted SQL against gold SQL by what both return from the database.

Execution follows the test-suite rule (R. Zhong et al., EMNLP 2020): the same bag of rows, columns
in any order, the order of rows only where the gold query orders them; every database must agree,
and two failed queries never match. Beside it stands Spider's exact set match.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from hone.core.errors import RequestError
from hone.core.progress import track
from hone.evals.records import Preview, Scored
from hone.sql.compare import is_ordered, same_rows
from hone.sql.exact import exact_set_match
from hone.sql.execute import Database, Result
from hone.sql.schema import Schema


class Example(Protocol):
    """A held-out question; ``gold`` is its reference query as it was given."""

    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def gold(self) -> str: ...  # noqa: D102
    @property
    def language(self) -> str: ...  # noqa: D102
    @property
    def hardness(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def pattern(self) -> str: ...  # noqa: D102


class Scorer:
    """Scores predictions on one schema; results of queries are kept, so a second model is cheap.

    Attributes:
        row_cap: a gold query that returns more rows is no reference: its items count as wrong, and
            ``gold_error`` says why.
        timeout_s: limit of one query in seconds.
        preview_rows: how many rows of every result are kept for readers.
    """

    def __init__(
        self,
        databases: Sequence[Database],
        schema: Schema,
        *,
        row_cap: int = 100_000,
        timeout_s: float = 5.0,
        preview_rows: int = 5,
    ) -> None:
        """Score on ``databases``, all of the same schema; previews come from the first."""
        assert databases, "a scorer needs a database"
        self.schema = schema
        self.row_cap = row_cap
        self.timeout_s = timeout_s
        self.preview_rows = preview_rows
        self._runs = [_Runs(database, timeout_s) for database in databases]

    def score_all(self, examples: Sequence[Example], predictions: Sequence[str]) -> list[Scored]:
        """Score ``predictions[i]`` against ``examples[i]``, for every i."""
        pairs = list(zip(examples, predictions, strict=True))
        return [self.score(*pair) for pair in track(pairs, "Scoring", unit="queries")]

    def score(self, example: Example, predicted: str) -> Scored:
        """Score one prediction."""
        predicted = predicted.strip()
        golds = [runs(example.gold, self.row_cap) for runs in self._runs]
        found = [
            # Rows beyond the gold's are a mismatch already; some more are read to be counted.
            runs(predicted, min(self.row_cap, max(_rows(gold) + 1, 1000)))
            for runs, gold in zip(self._runs, golds, strict=True)
        ]
        gold_error = _first_error(golds)
        if gold_error is None and any(
            isinstance(gold, Result) and gold.truncated for gold in golds
        ):
            gold_error = f"The gold query returns over {self.row_cap:,} rows."
        error = _first_error(found)
        return Scored(
            question=_valid(example.question),
            language=example.language,
            hardness=example.hardness,
            split=example.split,
            pattern=example.pattern,
            gold=_valid(example.gold),
            predicted=_valid(predicted),
            ok=gold_error is None and error is None and self._match(example.gold, golds, found),
            exact=exact_set_match(example.gold, predicted, self.schema),
            error=error,
            gold_error=gold_error,
            result=self._preview(found[0]),
            gold_result=self._preview(golds[0]),
        )

    def _match(
        self, gold_sql: str, golds: Iterable["Result | str"], found: Iterable["Result | str"]
    ) -> bool:
        ordered = is_ordered(gold_sql)
        for gold, other in zip(golds, found, strict=True):
            assert isinstance(gold, Result)
            assert isinstance(other, Result)
            # The same text gives the same result, which need not be compared.
            if gold is not other and not same_rows(gold, other, ordered):
                return False
        return True

    def _preview(self, result: "Result | str") -> Preview | None:
        if isinstance(result, str):
            return None
        return Preview.of(result.columns, result.rows, self.preview_rows, result.truncated)


def _rows(result: "Result | str") -> int:
    return 0 if isinstance(result, str) else len(result.rows)


def _first_error(results: Iterable["Result | str"]) -> str | None:
    return next((result for result in results if isinstance(result, str)), None)


def _valid(text: str) -> str:
    """``text`` without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Runs:
    """Runs queries on one database and keeps the latest results, up to a number of values."""

    _MOST_VALUES = 2_000_000

    def __init__(self, database: Database, timeout_s: float) -> None:
        self._database, self._timeout_s = database, timeout_s
        self._kept: OrderedDict[str, Result | str] = OrderedDict()
        self._values = 0

    def __call__(self, sql: str, row_cap: int) -> Result | str:
        """At least ``row_cap`` rows of ``sql`` if it has them, or why it cannot be run."""
        kept = self._kept.get(sql)
        if kept is not None:
            if isinstance(kept, str) or not kept.truncated or len(kept.rows) >= row_cap:
                self._kept.move_to_end(sql)
                return kept
            self._values -= _values(self._kept.pop(sql))
        result: Result | str
        try:
            result = self._database.execute(sql, row_cap, self._timeout_s)
        except RequestError as error:
            result = str(error)
        self._kept[sql] = result
        self._values += _values(result)
        while self._values > self._MOST_VALUES and len(self._kept) > 1:
            self._values -= _values(self._kept.popitem(last=False)[1])
        return result


def _values(result: Result | str) -> int:
    return 1 if isinstance(result, str) else 1 + len(result.rows) * len(result.columns)
