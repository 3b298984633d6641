from itertools import pairwise

import numpy as np
import pytest
import tokenizers

from hone.data.words import TokenTexts
from hone.text.tokenizer import Tokenizer

KOREAN = (
    '안녕하세요? 저는 학생입니다. 날씨가 좋네요 산책해요 "정말요?" 원주율은 3.14이다. 끝\n둘째 줄'
)
SENTENCES = [
    "안녕하세요?",
    "저는 학생입니다.",
    "날씨가 좋네요",
    "산책해요",
    '"정말요?"',
    "원주율은 3.14이다.",
    "끝",
    "둘째 줄",
]


def byte_level():
    return Tokenizer.train([KOREAN], 300)


def sentence_piece():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=310, special_tokens=["<unk>", *octets])
    backend.train_from_iterator([KOREAN.replace("\n", " ")], trainer)
    return Tokenizer(backend, {"unk_token": "<unk>"})


def word_piece():
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[SEP]"])
    backend.train_from_iterator([KOREAN], trainer)
    backend.decoder = tokenizers.decoders.WordPiece()
    return Tokenizer(backend, {"unk_token": "[UNK]", "sep_token": "[SEP]"})


def cut(tokenizer, flags, ids):
    cuts = [*np.flatnonzero(flags), len(ids)]
    return [tokenizer.decode(ids[a:b]).strip() for a, b in pairwise(cuts)]


@pytest.mark.smoke
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_words_are_what_stands_between_white_space(make):
    tokenizer = make()
    text = KOREAN if make is byte_level else KOREAN.replace("\n", " ")
    ids = tokenizer.encode(text)
    starts = TokenTexts.of(tokenizer).word_starts(np.array(ids))
    assert starts.sum() < len(ids), "some words have several tokens"
    assert cut(tokenizer, starts, ids) == text.split()


def test_words_of_word_pieces_have_no_mark():
    tokenizer = word_piece()
    ids = tokenizer.encode("저는 학생입니다.")
    words = cut(tokenizer, TokenTexts.of(tokenizer).word_starts(np.array(ids)), ids)
    assert words == ["저는", "학생입니다", "."]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_korean_sentences_end_with_stops_lines_and_polite_forms(make):
    tokenizer = make()
    text = KOREAN if make is byte_level else KOREAN.replace("\n", " ")
    ids = tokenizer.encode(text)
    starts = TokenTexts.of(tokenizer).sentence_starts(np.array(ids))
    expected = SENTENCES if make is byte_level else [*SENTENCES[:-2], "끝 둘째 줄"]
    assert cut(tokenizer, starts, ids) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 3.14. Yes!  No?) Ok", ["It is 3.14.", "Yes!", "No?)", "Ok"]),
        ("今日は雨。明日は？晴れ", ["今日は雨。", "明日は？", "晴れ"]),
        ("필요 없다... 그래", ["필요 없다...", "그래"]),
        ("one", ["one"]),
    ],
)
def test_sentences_of_other_writing(text, expected):
    letters = sorted(set(text))
    texts = TokenTexts([letter.encode() for letter in letters])
    ids = np.array([letters.index(letter) for letter in text])
    cuts = [*np.flatnonzero(texts.sentence_starts(ids)), len(ids)]
    assert [text[a:b].strip() for a, b in pairwise(cuts)] == expected


def test_special_tokens_are_words_of_their_own():
    texts = TokenTexts([b"<s>", b" a", b"b", b"c", b" "], special=[0])
    assert texts.word_starts(np.array([0, 2, 3, 1, 2, 0, 3])).tolist() == [
        *(True, True, False, True, False, True, True)
    ]
    # White space of its own belongs to the word behind it.
    assert texts.word_starts(np.array([2, 4, 4, 3, 1])).tolist() == [
        *(True, True, False, False, True)
    ]


def test_the_name_of_a_vocabulary_is_its_content():
    assert repr(TokenTexts([b"a"])) == repr(TokenTexts((b"a",))) != repr(TokenTexts([b"b"]))
    assert repr(TokenTexts([b"a"])) != repr(TokenTexts([b"a"], [0]))
