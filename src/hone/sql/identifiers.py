"""How a name is written in SQL, and how it is read by a person."""

import re

# Words that SQLite refuses as a bare table or column name in some position (found by trying every
# keyword of https://www.sqlite.org/lang_keywords.html), and those that only sqlglot refuses.
_RESERVED_WORDS = (
    "add all alter and as autoincrement between case cast check collate commit constraint "
    "create current_date current_time current_timestamp default deferrable delete distinct "
    "drop else escape except exists foreign from group having in index insert intersect into "
    "is isnull join limit not nothing notnull null on or order primary raise references "
    "returning select set table then to transaction union unique update using values when "
    "where cross false for glob if inner left like natural offset outer regexp right rollback "
    "true window with"
)
_RESERVED = frozenset(_RESERVED_WORDS.split())
_BARE = re.compile(r"[A-Za-z_\uac00-\ud7a3][A-Za-z0-9_\uac00-\ud7a3]*")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\dA-Za-z_]+")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


def quote_identifier(name: str) -> str:
    """``name`` as SQL text: bare when it can be, else in double quotes with inner ones doubled.

    Letters, digits, ``_`` and Hangul syllables stay bare unless the word is reserved.
    """
    if _BARE.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return quote_always(name)


def quote_always(name: str) -> str:
    """``name`` in double quotes, inner ones doubled."""
    return '"' + name.replace('"', '""') + '"'


def has_hangul(text: str) -> bool:
    """Whether ``text`` holds a Hangul syllable (NFC)."""
    return _HANGUL.search(text) is not None


def readable(name: str) -> str:
    """The words of an identifier: ``cityName`` and ``CITY_NAME`` both give ``city name``."""
    words = _WORDS.findall(name)
    return " ".join(word.lower() for word in words) or name
