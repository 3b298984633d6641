import pytest

from hone.core.errors import DataError
from hone.text.tokenizer import Tokenizer
from hone.text.training import MASK, character_tokenizer, with_tokens


@pytest.mark.smoke
def test_a_character_is_a_token_and_comes_back(tmp_path):
    text = "나는 사과를 먹었다.\nTo be, or not"
    tokenizer = character_tokenizer([text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(text) == ids


def test_decomposed_hangul_is_the_same_character():
    tokenizer = character_tokenizer(["가"])
    assert tokenizer.encode("가") == tokenizer.encode("가")


def test_a_character_that_was_never_seen_is_unknown():
    tokenizer = character_tokenizer(["ab"])
    assert tokenizer.encode("ac")[1] == tokenizer.unk_id
    assert tokenizer.vocab_size == 4 + 2


def test_no_text_has_no_characters():
    with pytest.raises(DataError, match="no text"):
        character_tokenizer([])


def test_more_tokens_stand_behind_the_old_ones_and_survive_files(tmp_path):
    old = Tokenizer.train(["안녕하세요 hello"], 300)
    sentinels = [f"<extra_id_{n}>" for n in range(3)]
    new = with_tokens(old, mask=MASK, additional=sentinels)
    assert old.mask_id is None
    assert new.vocab_size == old.vocab_size + 4
    assert new.encode("안녕") == old.encode("안녕")
    assert new.encode(f"안{MASK}") == [*old.encode("안"), new.mask_id]
    new.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert [again.token_to_id(s) for s in sentinels] == [new.token_to_id(s) for s in sentinels]
    assert again.mask_id == new.mask_id
