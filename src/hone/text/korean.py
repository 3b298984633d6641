"""Korean particles, whose form depends on how the word before them ends when it is read aloud.

Rules: 국립국어원, 한글 맞춤법; a particle after a parenthesis follows the word before that.
Digits are read as Sino-Korean numbers, units and capital letters by their Korean names, and other
Latin words by their usual transcription (a rule of thumb: their spelling does not settle it).
"""

import re
import unicodedata

# The form after a consonant, then the form after a vowel.
PARTICLES: tuple[tuple[str, str], ...] = (
    ("을", "를"),
    ("이", "가"),
    ("은", "는"),
    ("과", "와"),
    ("으로", "로"),
    ("이나", "나"),
    ("이랑", "랑"),
    ("이라", "라"),
    ("이라는", "라는"),
    ("이며", "며"),
    ("이에요", "예요"),
    ("이야", "야"),
    ("이든", "든"),
)
_PAIRS = {f"{closed}/{open_}": (closed, open_) for closed, open_ in PARTICLES}

_FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")
_DIGITS = dict(zip("0123456789", "영일이삼사오육칠팔구", strict=True))
_LETTERS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "이비씨디이프지치이이케엘엠엔오피큐알스티유이우스이트",
        strict=True,
    )
)
_GRAMS, _BYTES = ("kg", "g", "mg"), ("MB", "GB", "TB")
_METRES = ("m", "cm", "mm", "km", "l", "L", "ml", "mL")
_UNITS = dict.fromkeys(_GRAMS, "램") | dict.fromkeys(_METRES, "터") | dict.fromkeys(_BYTES, "트")
_SYMBOLS = {"%": "트", "℃": "도", "°": "도", "$": "러", "€": "로", "£": "드", "₩": "원", "+": "스"}

_WORD_END = re.compile(r"([A-Za-z]+|\d[\d,]*(?:\.\d+)?|.)$")
_DATE_END = re.compile(r"\d{4}-\d{2}-\d{2}$")
_TIME_END = re.compile(r"\d{2}:\d{2}(:\d{2})?$")
_UNIT_END = re.compile(r"\d\s?([A-Za-z]{1,2})$")
_BRACKETS = re.compile(r"\s*[(\[（［][^()\[\]（）［］]*[)\]）］]$")
_PAIR = "|".join(map(re.escape, sorted(_PAIRS, key=len)[::-1]))
_SLOT = re.compile(r"\{(\w+)\}(?:(['\"’”]?)(" + _PAIR + "))?")


def final_consonant(word: str) -> str:
    """The final consonant of ``word`` as it is read aloud, ``""`` when it ends in a vowel.

    A word that ends in nothing readable (a sign, another script) counts as ending in a vowel.
    """
    return _final_of_syllable(_last_syllable(unicodedata.normalize("NFC", word)))


def particle(word: str, pair: str) -> str:
    """The form of ``pair`` (written like ``"을/를"``) that follows ``word``.

    Raises:
        KeyError: ``pair`` is not in :data:`PARTICLES`.
    """
    closed, open_ = _PAIRS[pair]
    final = final_consonant(word)
    if pair == "으로/로" and final == "ㄹ":
        return open_
    return closed if final else open_


def attach(word: str, pair: str) -> str:
    """``word`` with the form of ``pair`` that fits it: ``attach("도시", "을/를") == "도시를"``."""
    return word + particle(word, pair)


def fill(template: str, **slots: str) -> str:
    """Fill ``{slot}`` marks; a pair after one (and a closing quote) takes the form that fits.

    ``fill("{name}을/를 보여줘", name="도시") == "도시를 보여줘"``. Only the template's own
    pairs are touched, never the text of a slot.

    Raises:
        KeyError: the template has a slot that is not given.
    """

    def replace(match: re.Match[str]) -> str:
        text = slots[match[1]]
        return text + match[2] + particle(text, match[3]) if match[3] else text

    return _SLOT.sub(replace, template)


def _final_of_syllable(syllable: str) -> str:
    code = ord(syllable) - 0xAC00 if len(syllable) == 1 else -1
    return _FINALS[code % 28] if 0 <= code < 11172 else ""


def _last_syllable(word: str) -> str:
    """The last syllable of ``word`` read aloud, as one Hangul syllable, or ``""``."""
    text = word.rstrip(" \t\n'\"’”`.,!?;:·…")
    while (shorter := _BRACKETS.sub("", text)) != text and shorter:
        text = shorter.rstrip()
    text = text.rstrip(")]）］'\"’”`")
    if not text:
        return ""
    if _DATE_END.search(text):
        return "일"
    if _TIME_END.search(text):
        return "초" if text.count(":") > 1 else "분"
    if unit := _UNIT_END.search(text):
        return _UNITS.get(unit[1]) or _read_latin(unit[1])
    match = _WORD_END.search(text)
    last = match[1] if match else ""
    if last[:1].isascii() and last[:1].isalpha():
        return _read_latin(last)
    if last[:1].isdigit() and last[-1:] in _DIGITS:
        return _read_number(last)
    return _SYMBOLS.get(last, last)


def _read_number(number: str) -> str:
    """The last syllable of a number: 10 is 십, 300 is 백, 20000 is 만, 3.50 is 오영."""
    whole, _, fraction = number.replace(",", "").partition(".")
    if fraction:
        return _DIGITS[fraction[-1]]
    zeros = len(whole) - len(whole.rstrip("0"))
    if zeros == len(whole):
        return "영"
    if zeros == 0:
        return _DIGITS[whole[-1]]
    if zeros >= 4:
        return {0: "만", 1: "억", 2: "조"}.get(zeros // 4 - 1, "경")
    return ("십", "백", "천")[zeros - 1]


def _read_latin(word: str) -> str:
    """The last syllable of a Latin word as Korean speakers usually read it."""
    lower = word.lower()
    spelt_out = len(word) == 1 or (
        word.isupper() and (len(word) <= 4 or not re.search("[AEIOUY]", word))
    )
    if spelt_out:
        return _LETTERS[word[-1].upper()]
    if re.search(r"(l|le|ll)$", lower):
        return "을"
    if re.search(r"(m|mb|me|mn)$", lower):
        return "음"
    if re.search(r"ng$", lower):
        return "응"
    if re.search(r"(n|ne)$", lower):
        return "은"
    if re.search(r"(ck|[^aeiou][aeiou][kc]|ook|ic|[^aeiou][aeiou]ke?t)$", lower):
        return "윽" if not lower.endswith("t") else "읏"
    if re.search(r"([^aeiou][aeiou]pp?|eb|ub|oop)$", lower):
        return "읍"
    if re.search(r"([^aeiou]|^)[aeiou]tt?$", lower):
        return "읏"
    return "으"
