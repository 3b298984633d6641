"""The playground's files as they are, without a browser."""

import re

from playground_server import PAGE


def _sources() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(PAGE.iterdir())}


def _words() -> dict[str, dict[str, str]]:
    found = re.findall(
        r'^  "?([\w.]+)"?: \{\s*en: "((?:[^"\\]|\\.)*)",\s*ko: "((?:[^"\\]|\\.)*)",?\s*\},$',
        (PAGE / "words.js").read_text("utf-8"),
        re.MULTILINE,
    )
    return {key: {"en": en, "ko": ko} for key, en, ko in found}


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name, text in _sources().items():
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./-]*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in text, name
        assert "insertAdjacentHTML" not in text, name
        assert len(text.splitlines()) <= 400, name


def test_every_text_is_there_in_both_languages() -> None:
    words = _words()
    source = (PAGE / "words.js").read_text("utf-8")
    assert len(words) == len(re.findall(r"\ben: ", source)) > 100
    used = set()
    for name, text in _sources().items():
        if name == "words.js":
            continue
        used |= {key for key in words if re.search(rf'["`]{re.escape(key)}["`]', text)}
        for key in re.findall(r'data-(?:text|label|placeholder)="([\w.]+)"', text):
            assert key in words, f"{name}: {key}"
    composed = {key for key in words if key.split(".")[0] in ("parameter", "hint", "wrong")}
    assert set(words) == used | composed
    for key, texts in words.items():
        assert set(re.findall(r"\{\w+\}", texts["en"])) == set(
            re.findall(r"\{\w+\}", texts["ko"])
        ), key
        if key not in ("language", "languageShort", "sql", "version"):
            assert re.search("[가-힣]", texts["ko"]), key


def test_texts_stand_out_from_their_ground() -> None:
    style = (PAGE / "playground.css").read_text("utf-8")
    light = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", style.split("@media")[0]))
    dark = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", style.split("@media")[1]))
    assert len(light) > 10
    assert set(light) == set(dark)
    pairs = [(ink, ground) for ink in ("text", "muted") for ground in ("page", "panel", "sunk")]
    pairs += [("on-accent", "accent"), ("accent", "page"), ("bad", "bad-page"), ("bad", "page")]
    pairs += [(f"sql-{kind}", "panel") for kind in ("keyword", "function", "string", "number")]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours in (light, dark):
        for ink, ground in pairs:
            low, high = sorted([luminance(colours[ink]), luminance(colours[ground])])
            # WCAG 2.2, success criterion 1.4.3.
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
