import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hone.core.errors import CheckpointError, DataError
from hone.text.tokenizer import BOS, EOS, PAD, Tokenizer

TEXTS = [
    "서울에 사는 고객은 몇 명이야?",
    "How many customers live in Seoul?",
    "SELECT name FROM customers WHERE city = '서울' AND price > 12000",
] * 4
TOKENIZER = Tokenizer.train(TEXTS, 320)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_in_nfc(text):
    # A special token's own spelling is read as that token, here as in transformers.
    assume(not any(token in text for token in (PAD, BOS, EOS)))
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.smoke
def test_numbers_and_quoted_names_have_one_spelling():
    alone = TOKENIZER.encode("서울")
    assert TOKENIZER.encode("= '서울'")[-len(alone) - 1 : -1] == alone
    assert TOKENIZER.encode("('서울')")[-len(alone) - 2 : -2] == alone
    assert TOKENIZER.encode("12000") == [TOKENIZER.encode(digit)[0] for digit in "12000"]


@pytest.mark.smoke
def test_training_is_deterministic_and_files_round_trip(tmp_path):
    assert Tokenizer.train(TEXTS, 320).fingerprint() == TOKENIZER.fingerprint()
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint() == TOKENIZER.fingerprint()
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "안녕하세요 🌍👩‍👩‍👧",
        unicodedata.normalize("NFD", "한국어"),
        "a\x00b\x07\t\n ",
        "ㄱ" * 2000,
        "a\ud800b",
    ],
)
def test_equal_to_transformers(tmp_path, text):
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    safe = text.encode("utf-8", "replace").decode()
    assert TOKENIZER.encode(text) == oracle(safe, add_special_tokens=False)["input_ids"]
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.smoke
def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(DataError, match="at least 259"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path)
