"""Figures and names as people read them, shared by the report and the terminal."""

import re
from collections.abc import Mapping

from hone.evals.intervals import Score

LANGUAGE_NAMES = {"all": "All", "ko": "Korean", "en": "English"}
SPLIT_NAMES = {"unseen_queries": "Unseen queries", "unseen_phrasings": "Unseen phrasings"}
SPLIT_NOTES = {
    "unseen_queries": "New queries, asked in sentence patterns that training saw.",
    "unseen_phrasings": "Sentence patterns that training never saw, made of words that it did.",
}
# C0 and C1 controls, directional overrides and lone surrogates: a value of the database must not
# move the cursor, reorder the line or make the page undecodable. Tab and newline stay.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]",
)


def printable(text: str) -> str:
    """``text`` with a replacement character for everything that would act instead of show."""
    return _CONTROL.sub("\ufffd", text)


def name_of(key: str, names: Mapping[str, str] = LANGUAGE_NAMES) -> str:
    """The display name of ``key``, which is itself in plain words when it has none."""
    return names.get(key) or key.replace("_", " ").capitalize()


def percent(share: float) -> str:
    """``0.9712`` as ``97.1%``."""
    return f"{share:.1%}"


def interval(score: Score) -> str:
    """The 95% interval of ``score`` in percent: ``95.3–98.4``."""
    low, high = score.interval
    return f"{low * 100:.1f}–{high * 100:.1f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: ``−0.4 points``."""
    rounded = round(difference * 100, 1)
    if rounded == 0:
        return "same"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f} points"


def times(ratio: float, more: str, less: str) -> str:
    """A ratio in words: ``times(3.9, "smaller", "larger")`` is ``3.90× smaller``."""
    if ratio <= 0:
        return "—"
    return f"{ratio:.2f}× {more}" if ratio >= 1 else f"{1 / ratio:.2f}× {less}"


def size(count: int) -> str:
    """A number of bytes in decimal units: ``6.2 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB" if value < 999.5 else f"{value:,.0f} GB"


def quantity(count: int) -> str:
    """A large count in short: ``3.21 M``."""
    value = float(count)
    if value < 1000:
        return str(count)
    for unit in ("k", "M"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:,.3g} B"


def duration(seconds: float) -> str:
    """A time as people say it: ``5 min 12 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cell(value: object) -> str:
    """A value of a result as text; NULL is spelt out and floats lose their rounding noise."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.10g}"
    return printable(str(value)).replace("\n", " ⏎ ")


def row_count(total: int, more: bool = False) -> str:
    """``1 row``, ``12 rows`` or ``more than 1,000 rows``."""
    counted = f"{total:,} row{'' if total == 1 else 's'}"
    return f"more than {counted}" if more else counted
