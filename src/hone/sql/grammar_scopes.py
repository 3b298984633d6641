"""What stands behind FROM in the SQL of a grammar, and the columns that are then in scope.

A context-free grammar cannot remember which tables a query named. So there is one rule per way of
naming them, and each has its own columns: the columns before FROM are already those of the tables
behind it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hone.sql.identifiers import quote_identifier
from hone.sql.schema import ForeignKey, Schema, Table

# Tables of one FROM, and ways of naming tables in one grammar; beyond them the sets of fewest
# tables stay. Pairs that no foreign key links join on any two columns, in a schema of few tables.
MOST_JOINED = 4
MOST_SCOPES = 240
_UNLINKED_UP_TO = 12


@dataclass(frozen=True, slots=True)
class Source:
    """A table of a FROM. ``alias`` is what it is called there, None where it has its own name."""

    table: int
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Two sources of one FROM; ``on`` are the ways of joining them, each of which may be several
    conditions; () means by any columns."""

    ends: frozenset[int]
    on: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """The sources of a FROM, in any order that ``links`` allow."""

    name: str
    sources: tuple[Source, ...]
    links: tuple[Link, ...] = ()


class Names:
    """How the tables of a schema are spelled, and their aliases."""

    def __init__(self, schema: Schema) -> None:
        self.tables: list[Table] = [table for table in schema.tables if table.columns]
        self._numbers = {table.name.lower(): at for at, table in enumerate(self.tables)}
        taken = {table.name.lower() for table in schema.tables}
        free = (f"T{number}" for number in range(1, 2 * len(taken) + 9))
        self.aliases = [alias for alias in free if alias.lower() not in taken]
        self.keys = [key for key in schema.foreign_keys if self._known(key)]

    def number(self, table: str) -> int:
        """Where ``table`` stands among :attr:`tables`."""
        return self._numbers[table.lower()]

    def table(self, number: int) -> str:
        """The table's name in SQL."""
        return quote_identifier(self.tables[number].name)

    def before(self, source: Source) -> str:
        """What stands before the dot of a column of ``source``."""
        return source.alias or self.table(source.table)

    def _known(self, key: ForeignKey) -> bool:
        return key.table.lower() in self._numbers and key.ref_table.lower() in self._numbers


def scopes(names: Names) -> list[Scope]:
    """Every way of naming tables behind FROM, those of one table first."""
    found = [Scope(f"s{at}", (Source(at),)) for at in range(len(names.tables))]
    if len(found) <= _UNLINKED_UP_TO:
        # Under another name, that an inner query of the same table can refer to it.
        alias = names.aliases[0]
        found += [Scope(f"e{at}", (Source(at, alias),)) for at in range(len(names.tables))]
    for number, scope in enumerate(_joined(names)):
        if len(found) == MOST_SCOPES:
            break
        found.append(Scope(f"j{number}", scope.sources, scope.links))
    return found


def _joined(names: Names) -> Iterator[Scope]:
    """Sets of tables that foreign keys connect, the smallest first, and then the rarer pairs."""
    linked: dict[frozenset[int], list[ForeignKey]] = {}
    for key in names.keys:
        ends = frozenset((names.number(key.table), names.number(key.ref_table)))
        linked.setdefault(ends, []).append(key)
    pairs = [ends for ends in linked if len(ends) == 2]
    level = sorted(pairs, key=sorted)
    by_size = [level]
    while level and len(by_size) < MOST_JOINED - 1:
        grown = {tables | ends for tables in level for ends in pairs if len(tables & ends) == 1}
        level = sorted(grown, key=sorted)
        by_size.append(level)
    yield from (_plain(names, tables, linked) for tables in by_size[0])
    yield from _twice(names, linked)
    for level in by_size[1:2]:
        yield from (_plain(names, tables, linked) for tables in level)
    if len(names.tables) <= _UNLINKED_UP_TO:
        for two in combinations(range(len(names.tables)), 2):
            if frozenset(two) not in linked:
                sources = (Source(two[0]), Source(two[1]))
                yield Scope("", sources, (Link(frozenset((0, 1)), ()),))
    for level in by_size[2:]:
        yield from (_plain(names, tables, linked) for tables in level)


def _plain(
    names: Names, tables: frozenset[int], linked: dict[frozenset[int], list[ForeignKey]]
) -> Scope:
    """Tables under their own names."""
    sources = tuple(Source(table) for table in sorted(tables))
    place = {source.table: at for at, source in enumerate(sources)}
    links = [
        Link(frozenset(place[end] for end in ends), _conditions(names, keys, sources))
        for ends, keys in linked.items()
        if len(ends) == 2 and ends <= tables
    ]
    return Scope("", sources, tuple(links))


def _twice(names: Names, linked: dict[frozenset[int], list[ForeignKey]]) -> Iterator[Scope]:
    """A table beside itself: by a key to itself, or as what two keys of another one refer to."""
    first, second = names.aliases[:2]
    for ends, keys in linked.items():
        if len(ends) == 1:
            (table,) = ends
            sources = (Source(table, first), Source(table, second))
            on = _between(names, keys, sources[0], sources[1])
            on += _between(names, keys, sources[1], sources[0])
            yield Scope("", sources, (Link(frozenset((0, 1)), on),))
            continue
        for child, parent in (tuple(ends), tuple(ends)[::-1]):
            own = [key for key in keys if names.number(key.table) == child]
            if len(own) > 1:
                three = (Source(child), Source(parent, first), Source(parent, second))
                links = tuple(
                    Link(frozenset((0, at)), _between(names, own, three[0], three[at]))
                    for at in (1, 2)
                )
                yield Scope("", three, links)


def _conditions(
    names: Names, keys: Sequence[ForeignKey], sources: Sequence[Source]
) -> tuple[tuple[str, ...], ...]:
    """The conditions of ``keys`` between tables that each occur once."""
    place = {source.table: source for source in sources}
    return tuple(
        condition
        for key in keys
        for condition in _between(
            names, [key], place[names.number(key.table)], place[names.number(key.ref_table)]
        )
    )


def _between(
    names: Names, keys: Sequence[ForeignKey], child: Source, parent: Source
) -> tuple[tuple[str, ...], ...]:
    """``child.key = parent.id`` and the other way round; all columns of a key together."""
    left, right = names.before(child), names.before(parent)
    spelt: list[tuple[str, ...]] = []
    for key in keys:
        pairs = [
            (f"{left}.{quote_identifier(one)}", f"{right}.{quote_identifier(other)}")
            for one, other in zip(key.columns, key.ref_columns, strict=True)
        ]
        spelt.append(tuple(f"{one} = {other}" for one, other in pairs))
        spelt.append(tuple(f"{other} = {one}" for one, other in pairs))
    return tuple(spelt)
