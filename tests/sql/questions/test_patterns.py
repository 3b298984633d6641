import subprocess
import sys
from collections import Counter

import pytest

from hone.sql.questions import KINDS, patterns
from hone.sql.questions.frames import FRAMES
from hone.sql.questions.patterns import Pattern, words

LANGUAGES = ("ko", "en")
JOINS = {kind for kind in KINDS if kind.startswith("join_")}
NESTED = {
    "above_average", "count_above_average", "extreme", "has_any", "has_where", "has_none",
    "none_where", "count_none", "same_as", "compare_to",
}  # fmt: skip


def _share(chosen: list[Pattern]) -> float:
    return sum(pattern.split == "held_out" for pattern in chosen) / len(chosen)


@pytest.mark.smoke
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_quarter_is_held_out_everywhere(language: str) -> None:
    spoken = [pattern for pattern in patterns() if pattern.language == language]
    assert _share(spoken) >= 0.25
    for group in (JOINS, NESTED):
        assert _share([pattern for pattern in spoken if pattern.kind in group]) >= 0.25
    for kind in KINDS:
        assert 0.25 <= _share([pattern for pattern in spoken if pattern.kind == kind]) <= 0.4


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_frames_are_made_of_known_words(language: str) -> None:
    spoken = [pattern for pattern in patterns() if pattern.language == language]
    taught = Counter(
        word for pattern in spoken if pattern.split == "train" for word in words(pattern.frame)
    )
    for pattern in spoken:
        if pattern.split == "held_out":
            assert all(taught[word] >= 2 for word in words(pattern.frame)), pattern.frame


def test_a_held_out_frame_is_held_out_for_every_kind() -> None:
    sides: dict[tuple[str, str], set[str]] = {}
    for pattern in patterns():
        sides.setdefault((pattern.language, pattern.frame), set()).add(pattern.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_every_kind_has_its_frames_in_each_language() -> None:
    for language in LANGUAGES:
        assert set(FRAMES[language]) == set(KINDS)
        for kind, frames in FRAMES[language].items():
            assert len(frames) >= 9, (language, kind)
            assert len(set(frames)) == len(frames), (language, kind)


def test_names_are_unique() -> None:
    names = [pattern.name for pattern in patterns()]
    assert len(names) == len(set(names))


def test_the_split_is_the_same_in_another_process() -> None:
    code = (
        "from hone.sql.questions import patterns\n"
        "print(*[p.name for p in patterns() if p.split == 'held_out'])"
    )
    environment = {"PYTHONHASHSEED": "99", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == [p.name for p in patterns() if p.split == "held_out"]
