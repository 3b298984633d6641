"""The SELECT queries that may be asked of one database, as a grammar.

Whatever :class:`SqlGrammar` derives, SQLite accepts: names are the schema's own, a column is one of
the tables behind its FROM, a query of several tables says which table each column is of, aggregates
stand where they may, the two sides of a UNION have as many columns, and a slot is one of the
prompt's. The spelling is that of :func:`hone.sql.canonical_sql`.

The language is bounded, so that every query ends:

- 4 tables in a FROM, joined by the schema's foreign keys (any two tables where there are at most 12
  of them); a table beside itself where a key says how; 240 ways of naming tables in all;
- queries nested to a depth of 3: of 4 tables outside, then of 3, of 2 and of 1;
- 8 columns in a list, 6 conditions, 3 queries in a UNION, strings of 80 characters.
"""

import json
from collections.abc import Callable, Collection, Iterable

from hone.sql.grammar_scopes import Names, Scope, Source, scopes
from hone.sql.identifiers import quote_identifier
from hone.sql.schema import Schema

# Tables of one FROM at each depth.
_WIDEST = (4, 3, 2, 1)
_DEEPEST = len(_WIDEST) - 1
# Queries of so many columns can be united, longer ones not.
_LONGER = 3
_LENGTHS = (1, 2, _LONGER)
# Up to so many tables any one may refer to any outer one.
_CORRELATED_UP_TO = 12
_SHARED = r"""
cmp: " = " | " != " | " > " | " < " | " >= " | " <= "
math: " + " | " - " | " * " | " / "
like: " LIKE " | " NOT LIKE "
among: " IN (" | " NOT IN ("
between: " BETWEEN " | " NOT BETWEEN "
isnull: " IS NULL" | " IS NOT NULL"
exists: "EXISTS (" | "NOT EXISTS ("
unite: " UNION " | " UNION ALL " | " INTERSECT " | " EXCEPT "
junction: " AND " | " OR "
aggregate: "SUM(" | "AVG(" | "MIN(" | "MAX(" | "COUNT("
function: "LENGTH(" | "LOWER(" | "UPPER(" | "ABS(" | "DATE(" | "JULIANDAY("
moment: "STRFTIME('%" ("Y" | "m" | "d" | "H" | "w" | "Y-%m") "', "
cast: " AS INTEGER)" | " AS REAL)" | " AS TEXT)"
join: " JOIN " | " LEFT JOIN "
direction: " DESC" | " ASC"
digits: ", " DIGIT ")"
values: value (", " value){0,20}
limit: " LIMIT " rows
select: "SELECT " "DISTINCT "?
value: NUMBER | text
DIGIT: /[0-9]/
WHOLE: /[1-9][0-9]{0,5}/
NUMBER: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?/
"""


class SqlGrammar:
    """Writes the grammar of one database for each prompt."""

    def __init__(self, schema: Schema) -> None:
        rules = _Rules(schema).rules
        self._lines = [f"{name}: {body}" for name, body in rules.items()]

    def __call__(self, slots: int = 0, whole: Collection[int] = ()) -> str:
        """The grammar in the notation of llguidance (its dialect of Lark).

        Args:
            slots: the prompt's values are ``{1}`` to ``{slots}``, which stand where values do.
            whole: those of them that are whole numbers, which may say how many rows.
        """
        return "\n".join([*self._lines, _values(slots, sorted(whole)), _SHARED.strip(), ""])


def _values(slots: int, whole: list[int]) -> str:
    """The rules of values that the prompt decides."""
    numbers = range(1, slots + 1)
    inside = "".join(rf"|\{{{number}\}}" for number in numbers)
    text = _either(["STRING", *(f'"{{{number}}}"' for number in numbers)])
    rows = _either(["WHOLE", *(f'"{{{number}}}"' for number in whole)])
    string = rf"STRING: /'([^'{{}}\x00-\x1f\x7f]|''{inside}){{0,80}}'/"
    return f"text: {text}\nrows: {rows}\n{string}"


class _Rules:
    """Writes each rule once, when it is first needed."""

    def __init__(self, schema: Schema) -> None:
        self.names = Names(schema)
        self.scopes = scopes(self.names)
        self.rules: dict[str, str] = {}
        queries = [self._query(scope, 0, count) for scope in self.scopes for count in _LENGTHS]
        self._add("start", lambda: f'" "? ({_either([*queries, self._counted()])})')

    def _add(self, name: str, body: Callable[[], str]) -> str:
        if name not in self.rules:
            self.rules[name] = ""  # its place, while what it is made of is written
            self.rules[name] = body()
        return name

    # Queries.

    def _query(self, scope: Scope, depth: int, count: int) -> str:
        """A query of ``count`` columns, united with others where that can be."""

        def body() -> str:
            end = self._end(scope, depth)
            if count != _LONGER and depth < 2:
                end = f"({end} | {self._group(scope, depth)}? {self._united(depth, count)})"
            return f"{self._head(scope, depth, count)} {end}"

        return self._add(f"q{depth}_{count}_{scope.name}", body)

    def _united(self, depth: int, count: int) -> str:
        def arms() -> str:
            return _either(
                f"{self._head(scope, depth, count)} {self._group(scope, depth)}?"
                for scope in self._at(depth)
            )

        def body() -> str:
            return f"(unite ({self._add(f'a{depth}_{count}', arms)})){{1,2}}"

        return self._add(f"u{depth}_{count}", body)

    def _head(self, scope: Scope, depth: int, count: int) -> str:
        """A query up to its conditions."""
        return f"select {self._list(scope, count)} {self._rows(scope, depth)}"

    def _rows(self, scope: Scope, depth: int) -> str:
        """The rows that are selected."""
        return self._add(
            f"r{depth}_{scope.name}",
            lambda: f'" FROM " {self._from(scope)} {self._where(scope, depth)}?',
        )

    def _end(self, scope: Scope, depth: int) -> str:
        def body() -> str:
            plain = f"{self._order(scope, False)}? limit?"
            return f"{plain} | {self._group(scope, depth)} {self._order(scope, True)}? limit?"

        return self._add(f"z{depth}_{scope.name}", body)

    def _counted(self) -> str:
        def body() -> str:
            inner = [self._query(scope, 1, count) for scope in self._at(1) for count in _LENGTHS]
            return f'"SELECT " "COUNT(*)" " FROM " "(" ({_either(inner)}) ")"'

        return self._add("counted", body)

    def _column_of_rows(self, depth: int) -> str:
        """A query of one column, inside another one."""

        def body() -> str:
            return _either(self._query(scope, depth, 1) for scope in self._at(depth))

        return self._add(f"sub{depth}", body)

    def _any_rows(self, depth: int) -> str:
        """Rows of which only matters whether there are any."""

        def body() -> str:
            return _either(self._rows(scope, depth) for scope in self._at(depth))

        return self._add(f"rows{depth}", body)

    def _at(self, depth: int) -> list[Scope]:
        """The scopes of a query at ``depth``."""
        return [
            scope
            for scope in self.scopes
            if len(scope.sources) <= _WIDEST[depth] and (depth == 0 or scope.name[0] != "e")
        ]

    # Clauses.

    def _list(self, scope: Scope, count: int) -> str:
        item = self._item(scope)

        def body() -> str:
            if count != _LONGER:
                return " ".join([item, *[f'", " {item}'] * (count - 1)])
            kinds = ['"*"', f'{item} (", " {item}){{2,7}}']
            if len(scope.sources) > 1:
                whole = _either(_text(self.names.before(source) + ".*") for source in scope.sources)
                kinds.append(f'({whole}) (", " {item}){{0,5}}')
            return _either(kinds)

        return self._add(f"l{count}_{scope.name}", body)

    def _item(self, scope: Scope) -> str:
        expression, aggregate = self._expression(scope), self._aggregate(scope)
        return self._add(f"i_{scope.name}", lambda: f"{expression} | {aggregate}")

    def _from(self, scope: Scope) -> str:
        everything = frozenset(range(len(scope.sources)))

        def called(at: int) -> str:
            source = scope.sources[at]
            name = _text(self.names.table(source.table))
            return f"{name} {_text(f' {source.alias}')}" if source.alias else name

        def joined(held: frozenset[int]) -> str:
            """What joins the sources that are not ``held`` yet."""
            name = f"f{'_'.join(map(str, sorted(held)))}_{scope.name}"
            kinds = []
            for at in sorted(everything - held):
                on = []
                for link in scope.links:
                    if at in link.ends and link.ends <= held | {at}:
                        on += [_conditions(texts) for texts in link.on] or [self._any_equal(scope)]
                if on:
                    rest = joined(held | {at}) if held | {at} != everything else ""
                    kinds.append(f'join {called(at)} " ON " ({_either(on)}) {rest}')
            return self._add(name, lambda: _either(kinds))

        def body() -> str:
            starts = []
            for at in sorted(everything):
                rest = joined(frozenset((at,))) if len(everything) > 1 else ""
                starts.append(f"{called(at)} {rest}")
            return _either(starts)

        return self._add(f"f_{scope.name}", body)

    def _any_equal(self, scope: Scope) -> str:
        first, second = (self._qualified(source) for source in scope.sources)
        return self._add(
            f"e_{scope.name}", lambda: f'{first} " = " {second} | {second} " = " {first}'
        )

    def _where(self, scope: Scope, depth: int) -> str:
        test = self._test(scope, depth)

        def body() -> str:
            several = f'"(" {test} (junction {test}){{1,4}} ")"'
            term = self._add(f"t{depth}_{scope.name}", lambda: f"{test} | {several}")
            return f'" WHERE " {term} (junction {term}){{0,5}}'

        return self._add(f"w{depth}_{scope.name}", body)

    def _group(self, scope: Scope, depth: int) -> str:
        def body() -> str:
            by, aggregate = self._expression(scope), self._aggregate(scope)
            right = ["value", aggregate]
            if depth < _DEEPEST:
                right.append(f'"(" {self._column_of_rows(depth + 1)} ")"')
            tests = f'{aggregate} cmp ({_either(right)}) | {aggregate} between value " AND " value'
            test = self._add(f"h{depth}_{scope.name}", lambda: tests)
            having = f'" HAVING " {test} (junction {test}){{0,3}}'
            return f'" GROUP BY " {by} (", " {by}){{0,3}} ({having})?'

        return self._add(f"g{depth}_{scope.name}", body)

    def _order(self, scope: Scope, grouped: bool) -> str:
        # Without groups an aggregate cannot be ordered by.
        by = self._item(scope) if grouped else self._expression(scope)
        return self._add(
            f"o{int(grouped)}_{scope.name}",
            lambda: f'" ORDER BY " {by} direction? (", " {by} direction?){{0,3}}',
        )

    # Conditions.

    def _test(self, scope: Scope, depth: int) -> str:
        def body() -> str:
            left = self._expression(scope)
            right, within = ["value", left], ["values"]
            kinds = [f"{left} like text", f"{left} isnull"]
            kinds.append(f'{left} between value " AND " value')
            if depth < _DEEPEST:
                inner = self._column_of_rows(depth + 1)
                right.append(f'"(" {inner} ")"')
                within.append(inner)
                kinds.append(f'exists "SELECT " "*" {self._any_rows(depth + 1)} ")"')
            if depth == 0:
                for other, rows in self._about(scope):
                    kinds.append(f'exists "SELECT " "*" {rows} ")"')
                    right.append(f'"(" "SELECT " {self._aggregate(other)} {rows} ")"')
            kinds.append(f"{left} cmp ({_either(right)})")
            kinds.append(f'{left} among ({_either(within)}) ")"')
            return _either(kinds)

        return self._add(f"c{depth}_{scope.name}", body)

    def _about(self, scope: Scope) -> list[tuple[Scope, str]]:
        """Other tables, and their rows that have to do with a row of ``scope``."""
        if len(scope.sources) > 1:
            return []
        (outer,) = scope.sources
        found = []
        for other in self.scopes[: len(self.names.tables)]:
            inner = other.sources[0].table
            if (inner == outer.table) != (outer.alias is not None):
                continue  # a table beside itself needs another name outside
            if len(self.names.tables) <= _CORRELATED_UP_TO or self._linked(inner, outer.table):
                found.append((other, self._rows_about(other, scope)))
        return found

    def _linked(self, one: int, other: int) -> bool:
        ends = {one, other}
        return any(
            {self.names.number(key.table), self.names.number(key.ref_table)} == ends
            for key in self.names.keys
        )

    def _rows_about(self, inner: Scope, outer: Scope) -> str:
        def body() -> str:
            own, theirs = self._column(inner), self._qualified(outer.sources[0])
            equal = f'({own} " = " {theirs} | {theirs} " = " {own})'
            more = f'(" AND " {self._test(inner, 1)}){{0,3}}'
            return f'" FROM " {self._from(inner)} " WHERE " {equal} {more}'

        return self._add(f"k{inner.name}_{outer.name}", body)

    # Columns and what is computed of them.

    def _expression(self, scope: Scope) -> str:
        column = self._column(scope)

        def body() -> str:
            kinds = [
                column,
                f'function {column} ")"',
                f'moment {column} ")"',
                f'"CAST(" {column} cast',
                f'"ROUND(" {column} (")" | digits)',
                f'"SUBSTR(" {column} ", " WHOLE (", " WHOLE)? ")"',
                f"{column} math ({column} | NUMBER)",
            ]
            return _either(kinds)

        return self._add(f"x_{scope.name}", body)

    def _aggregate(self, scope: Scope) -> str:
        expression = self._expression(scope)

        def plain() -> str:
            return f'"COUNT(*)" | aggregate "DISTINCT "? {expression} ")"'

        def body() -> str:
            one = self._add(f"m_{scope.name}", plain)
            return f'{one} | {one} math ({one} | NUMBER) | "ROUND(" {one} (")" | digits)'

        return self._add(f"n_{scope.name}", body)

    def _column(self, scope: Scope) -> str:
        """A column as it is called in ``scope``: bare when there is one table."""
        if len(scope.sources) == 1:
            return self._bare(scope.sources[0].table)
        return self._add(
            f"d_{scope.name}", lambda: _either(self._qualified(item) for item in scope.sources)
        )

    def _qualified(self, source: Source) -> str:
        before = self.names.before(source) + "."
        name = f"b{source.table}" + (f"_{source.alias.lower()}" if source.alias else "")
        return self._add(name, lambda: f"{_text(before)} {self._bare(source.table)}")

    def _bare(self, table: int) -> str:
        columns = self.names.tables[table].columns
        return self._add(
            f"v{table}", lambda: _either(_text(quote_identifier(column.name)) for column in columns)
        )


def _either(kinds: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(kinds))


def _conditions(texts: Iterable[str]) -> str:
    """Conditions that all hold."""
    return ' " AND " '.join(map(_text, texts))


def _text(text: str) -> str:
    """``text`` as a literal of the notation."""
    return json.dumps(text, ensure_ascii=False)
