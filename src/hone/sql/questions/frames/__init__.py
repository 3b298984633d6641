"""Sentence frames as data: what questions look like, by language and kind of question.

Words only. What fills the slots is decided in ``intents.py`` and spelt by ``english.py`` and
``korean.py``.
"""

from hone.sql.questions.frames import (
    english_grouped,
    english_linked,
    english_plain,
    korean_grouped,
    korean_linked,
    korean_plain,
)

FRAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "ko": korean_plain.FRAMES | korean_grouped.FRAMES | korean_linked.FRAMES,
    "en": english_plain.FRAMES | english_grouped.FRAMES | english_linked.FRAMES,
}

__all__ = ["FRAMES"]
