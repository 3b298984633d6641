import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.text.korean import PARTICLES, attach, fill, final_consonant, particle

PAIRS = ["/".join(pair) for pair in PARTICLES]
SYLLABLES = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("도시", "도시를"), ("부산", "부산을"), ("서울", "서울을"), ("매장", "매장을"),
        ("0", "0을"), ("1", "1을"), ("2", "2를"), ("3", "3을"), ("4", "4를"), ("5", "5를"),
        ("6", "6을"), ("7", "7을"), ("8", "8을"), ("9", "9를"), ("10", "10을"), ("20", "20을"),
        ("100", "100을"), ("1000", "1000을"), ("10000", "10000을"), ("1,000", "1,000을"),
        ("100000000", "100000000을"), ("1000000000000", "1000000000000를"), ("3.5", "3.5를"),
        ("2024-03-15", "2024-03-15을"), ("12:30", "12:30을"), ("12:30:05", "12:30:05를"),
        ("VIP", "VIP를"), ("L", "L을"), ("M", "M을"), ("R", "R을"), ("KTX", "KTX를"),
        ("Gold", "Gold를"), ("Silver", "Silver를"), ("Bronze", "Bronze를"), ("Apple", "Apple을"),
        ("Pinecone", "Pinecone을"), ("Kestrel", "Kestrel을"), ("book", "book을"),
        ("500g", "500g을"), ("3 kg", "3 kg을"), ("10cm", "10cm를"), ("50%", "50%를"),
        ("서울(Seoul)", "서울(Seoul)을"), ("Seoul (서울시)", "Seoul (서울시)을"),
        ("'부산'", "'부산'을"), ("“도시”", "“도시”를"), ("", "를"), ("!?", "!?를"),
    ],
)  # fmt: skip
@pytest.mark.smoke
def test_objects(word: str, expected: str) -> None:
    assert attach(word, "을/를") == expected


@pytest.mark.parametrize(
    ("word", "pair", "expected"),
    [
        ("도시", "이/가", "가"), ("이름", "이/가", "이"), ("고객", "은/는", "은"),
        ("가격", "과/와", "과"), ("재고", "과/와", "와"), ("고객", "이나/나", "이나"),
        ("부산", "으로/로", "으로"), ("서울", "으로/로", "로"), ("대구", "으로/로", "로"),
        ("1", "으로/로", "로"), ("3", "으로/로", "으로"), ("명", "이야/야", "이야"),
        ("개", "이야/야", "야"),
    ],
)  # fmt: skip
def test_other_particles(word: str, pair: str, expected: str) -> None:
    assert particle(word, pair) == expected


@given(SYLLABLES)
def test_a_syllable_decides_by_its_own_final(syllable: str) -> None:
    decomposed = unicodedata.normalize("NFD", syllable)
    closed = len(decomposed) == 3
    assert bool(final_consonant(syllable)) is closed
    assert particle(syllable, "은/는") == ("은" if closed else "는")
    # ㄹ is the one consonant after which 로 loses its 으.
    assert (particle(syllable, "으로/로") == "으로") is (closed and decomposed[2] != "\u11af")


@given(st.text(), st.sampled_from(PAIRS))
def test_any_text_gets_one_of_the_two_forms(word: str, pair: str) -> None:
    form = particle(word, pair)
    assert form in pair.split("/")
    assert attach(word, pair) == word + form


@given(SYLLABLES)
def test_decomposed_text_is_read_like_composed(syllable: str) -> None:
    assert final_consonant(unicodedata.normalize("NFD", syllable)) == final_consonant(syllable)


@given(st.text(max_size=20), st.sampled_from(PAIRS))
def test_filling_leaves_the_text_of_slots_alone(text: str, pair: str) -> None:
    filled = fill("{a}" + pair + " 그리고 {b}", a="도시", b=text)
    assert filled == attach("도시", pair) + " 그리고 " + text


def test_filling() -> None:
    assert fill("{c}이/가 {v}인 {t}을/를 보여줘", c="도시", v="부산", t="매장") == (
        "도시가 부산인 매장을 보여줘"
    )
    assert fill("'{v}'으로/로 시작", v="03") == "'03'으로 시작"
    assert fill("{a}을/를", a="은/는") == "은/는을"


def test_an_unknown_pair_or_slot_is_refused() -> None:
    with pytest.raises(KeyError):
        particle("도시", "에서/서")
    with pytest.raises(KeyError):
        fill("{a}", b="")
