"""What a training file is for, told by its columns."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hone.core.errors import DataError
from hone.core.nearest import nearest


class Format(StrEnum):
    """A way of writing training data."""

    PREFERENCE = "preference"
    CONVERSATION = "conversation"
    SHAREGPT = "sharegpt"
    UNPAIRED_PREFERENCE = "unpaired-preference"
    PROMPT_COMPLETION = "prompt-completion"
    ALPACA = "alpaca"
    TOKEN_CLASSIFICATION = "token-classification"
    PAIRS = "pairs"
    CLASSIFICATION = "classification"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a format.

    Attributes:
        needed: every way to write them; the first is the usual one.
        use: what it trains, for a sentence.
        tunes: a language model can be tuned on it with a loss on its own words.
    """

    needed: tuple[frozenset[str], ...]
    use: str
    tunes: bool = False


def _ways(*needed: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(way.split()) for way in needed)


# In the order in which they are tried: what has more columns goes before what has some of them.
FORMATS: dict[Format, Columns] = {
    Format.PREFERENCE: Columns(
        _ways("chosen rejected"), "preference training (a reward model or DPO)"
    ),
    Format.CONVERSATION: Columns(_ways("messages"), "tuning on conversations", True),
    Format.SHAREGPT: Columns(_ways("conversations"), "tuning on conversations", True),
    Format.UNPAIRED_PREFERENCE: Columns(
        _ways("prompt completion label"), "preference training on single answers (KTO)"
    ),
    Format.PROMPT_COMPLETION: Columns(
        _ways("prompt completion"), "tuning on completions of prompts", True
    ),
    Format.ALPACA: Columns(_ways("instruction output"), "tuning on instructions", True),
    Format.TOKEN_CLASSIFICATION: Columns(
        _ways("tokens tags", "tokens ner_tags"), "training a classifier of tokens"
    ),
    Format.PAIRS: Columns(
        _ways("anchor positive", "sentence1 sentence2 score", "sentence1 sentence2 label"),
        "training sentence embeddings",
    ),
    Format.CLASSIFICATION: Columns(
        _ways("text label", "sentence label"), "training a classifier of texts"
    ),
    Format.TEXT: Columns(_ways("text"), "language modelling", True),
}


def detect_format(columns: Iterable[str], where: str) -> Format:
    """The format of a file with ``columns``.

    Args:
        where: the file's name, for the message.

    Raises:
        DataError: no format has these columns; says what was found and what there is.
    """
    found = list(columns)
    for form, known in FORMATS.items():
        if any(needed.issubset(found) for needed in known.needed):
            return form
    names = {name for known in FORMATS.values() for way in known.needed for name in way}
    hints = (nearest(name, names) for name in found if name not in names)
    near = [hint for hint in hints if hint.startswith("Did")]
    ways = ", ".join("+".join(_ordered(known.needed[0])) for known in FORMATS.values())
    raise DataError(
        f"{where} has the columns {', '.join(found) or '(none)'}, which no format has. "
        + (f"{near[0]} " if near else "")
        + f"Formats: {ways}. Name columns anew where only their names differ, e.g. "
        f"prompt={found[0] if found else 'question'}."
    )


def check_tunes(form: Format, where: str) -> None:
    """Raise unless a language model can be tuned on data of ``form``.

    Raises:
        DataError: says what such data is for.
    """
    if not FORMATS[form].tunes:
        raise DataError(
            f"{where} is {form} data ({' and '.join(_ordered(FORMATS[form].needed[0]))}), which is "
            f"for {FORMATS[form].use}, not for tuning on answers."
        )


def _ordered(names: frozenset[str]) -> list[str]:
    order = ("prompt", "instruction", "anchor", "tokens", "text", "sentence", "sentence1")
    return sorted(names, key=lambda name: (name not in order, name))
