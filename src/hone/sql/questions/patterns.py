"""Sentence patterns, and which of them training never sees.

A pattern is a kind of question, a language and a frame. In every kind and language a fixed share is
held out: the frames whose hash is smallest, passing over a frame with a word that no frame of the
language would be left to teach. So the held-out patterns are new arrangements of known words.
"""

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Literal

from hone.sql.questions.frames import FRAMES

HELD_OUT_SHARE = 0.25
# A word of a held-out frame occurs in at least this many frames that training sees.
_TAUGHT_BY = 2
_SLOT = re.compile(r"\{\w+\}")
_WORD = re.compile(r"[가-힣]+|[a-z]+")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sentence frame of one kind of question in one language."""

    name: str
    kind: str
    language: str
    frame: str
    split: Literal["train", "held_out"]


@cache
def patterns() -> tuple[Pattern, ...]:
    """All sentence patterns of both languages, each in its split; the same in every process."""
    return tuple(
        Pattern(f"{kind}/{language}/{place}", kind, language, frame, _split(frame in held_out))
        for language, kinds in FRAMES.items()
        for held_out in (_held_out(kinds),)
        for kind, frames in kinds.items()
        for place, frame in enumerate(frames)
    )


def words(frame: str) -> set[str]:
    """The words of a frame, in lower case, without its slots (Korean: with their endings)."""
    return set(_WORD.findall(_SLOT.sub(" ", frame).lower()))


def _split(held_out: bool) -> Literal["train", "held_out"]:
    return "held_out" if held_out else "train"


def _held_out(kinds: dict[str, tuple[str, ...]]) -> frozenset[str]:
    counts = Counter(word for frames in kinds.values() for frame in frames for word in words(frame))
    chosen: set[str] = set()
    for frames in kinds.values():
        wanted = math.ceil(HELD_OUT_SHARE * len(frames))
        ranked = sorted(frames, key=lambda frame: hashlib.sha256(frame.encode()).hexdigest())
        for frame in ranked:
            if not wanted:
                break
            if all(counts[word] > _TAUGHT_BY for word in words(frame)):
                wanted -= 1
                chosen.add(frame)
                counts.subtract(words(frame))
    return frozenset(chosen)
