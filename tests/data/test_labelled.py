"""Labels of every kind and in every spelling reach the right sample, word or pair."""

import gzip
import json
import unicodedata
from itertools import islice, pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from hone.core.errors import DataError
from hone.data.formats import Format
from hone.data.labelled import read_labelled
from hone.data.samples import IGNORED
from hone.text.tokenizer import Tokenizer

TEXTS = [
    "서울에 사는 고객은 몇 명이야?",
    "부산은 바다가 있다.",
    "How many? 12 or 34.",
    "정말 좋아요",
]
LONG = 1000


def wordpiece() -> Tokenizer:
    """As BERT's: normalisation drops characters, [CLS] and [SEP] stand around a text."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return Tokenizer(backend, roles | {"sep_token": "[SEP]"})


TOKENIZERS = {"bytes": Tokenizer.train(TEXTS * 3, 300), "wordpiece": wordpiece()}
BYTES = TOKENIZERS["bytes"]


@pytest.fixture
def read(tmp_path):
    """``read(form, rows)`` reads rows as JSONL, or a text as the file of the name given."""

    def reading(form, rows, name="자료.jsonl", tokenizer=BYTES, max_length=LONG, **more):
        file = tmp_path / name
        if not isinstance(rows, str):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text(rows, encoding="utf-8")
        return read_labelled(Format(form), file, tokenizer, max_length, **more)

    return reading


def texts(*labels):
    return [{"text": TEXTS[n % 4], "label": label} for n, label in enumerate(labels)]


def classes(found):
    """The name of every sample's class."""
    return [found.labels[sample.target] for sample in found.samples]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        ((3, 1, 10, 1), ["3", "1", "10", "1"], ("1", "3", "10")),
        ((1.0, 5.0, 10.0), ["1", "5", "10"], ("1", "5", "10")),  # ratings
        ((0, -1, 1), ["0", "-1", "1"], ("-1", "0", "1")),
        ((True, False, True), ["True", "False", "True"], ("False", "True")),
        (("부정", "긍정"), ["부정", "긍정"], ("긍정", "부정")),
        (("10", "9"), ["10", "9"], ("9", "10")),
        ((1, "many"), ["1", "many"], ("1", "many")),
        (("3.5", "none"), ["3.5", "none"], ("3.5", "none")),
    ],
)
def test_one_class_of_several(read, labels, names, order):
    found = read("classification", texts(*labels))
    assert (found.problem, found.labels) == ("single_label", order)
    assert classes(found) == names
    assert all(isinstance(sample.target, int) for sample in found.samples)
    for sample, text in zip(found.samples, TEXTS, strict=False):
        assert list(sample.ids) == BYTES.encode(text, add_special_tokens=True)
        assert not len(sample.labels)
    assert list(found.lines) == list(range(1, len(labels) + 1))


@pytest.mark.parametrize(
    "labels",
    [
        (4.5, 3.0, 2.0),  # some are whole
        (3, 2.5, 1),
        (*([4.0] * 150), 2.5),  # and the others come late
        ("4.5", "3", "-1e-1"),  # a table of texts
    ],
)
def test_numbers_of_which_some_are_not_whole_are_to_be_told_as_numbers(read, labels):
    found = read("classification", texts(*labels))
    assert (found.problem, found.labels) == ("regression", ("score",))
    assert [sample.target for sample in found.samples] == [float(label) for label in labels]


def test_a_table_of_texts_has_numbers_too(read):
    table = "\ufefftext,label\r\n서울,4.5\r\n부산,3\r\n"
    found = read("classification", table, "점수.csv")
    assert found.problem == "regression"
    assert [sample.target for sample in found.samples] == [4.5, 3.0]
    assert list(found.lines) == [2, 3]
    found = read("classification", table.replace("4.5", "4"), "점수.csv")
    assert (found.problem, found.labels) == ("single_label", ("3", "4"))


def test_several_classes_or_none(read):
    found = read("classification", texts(["슬픔", "기쁨"], [], ["기쁨"], [2]))
    assert (found.problem, found.labels) == ("multi_label", ("2", "기쁨", "슬픔"))
    assert [s.target for s in found.samples] == [(0, 1, 1), (0, 0, 0), (0, 1, 0), (1, 0, 0)]


def test_the_classes_that_a_model_knows(read):
    known = ("negative", "neutral", "positive")
    found = read("classification", texts("positive", "negative"), known_labels=known)
    assert found.labels == known
    assert [sample.target for sample in found.samples] == [2, 0]
    found = read("classification", texts("positive", "other"), known_labels=known)
    assert found.labels == ("other", "positive")
    # A model that tells a number goes on doing so, also where all of them are whole.
    found = read("classification", texts(5, 1, 3), known_labels=("score",))
    assert found.problem == "regression"
    assert [sample.target for sample in found.samples] == [5.0, 1.0, 3.0]
    found = read("classification", texts("a", "b"), known_labels=("score",))
    assert found.labels == ("a", "b")


def test_a_file_that_is_scored_means_what_the_trained_one_does(read):
    trained = read("classification", texts("나", "가", "다"))
    scored = read("classification", texts("다"), like=trained)
    assert (scored.labels, classes(scored)) == (trained.labels, ["다"])
    with pytest.raises(DataError, match="labels that are not trained: 라"):
        read("classification", texts("가", "라"), like=trained)
    trained = read("classification", texts(1.5, 3))
    assert read("classification", texts(4.0, 2.0), like=trained).problem == "regression"
    with pytest.raises(DataError, match=r"line 2: expected a number, found 'x'"):
        read("classification", texts(4.0, "x"), like=trained)
    trained = read("classification", texts(["a"], ["b"]))
    with pytest.raises(DataError, match="of the kind single_label"):
        read("classification", texts("a"), like=trained)
    trained = read("pairs", pairs(5, 1.5))
    assert [s.target for s in read("pairs", pairs(1, 0.5), like=trained).samples] == [0.2, 0.1]
    with pytest.raises(DataError, match="or neither"):
        read("pairs", [{"anchor": "a", "positive": "b"}], like=trained)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (texts("a", None), 'line 2: "label" is None; every text needs one'),
        (texts("a", ""), "line 2: \"label\" is ''; every text needs one"),
        (texts({"a": 1}, "b"), "line 1"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], 'line 2: "label" is None'),
        ([{"text": " ", "label": "x"}, {"text": None, "label": "y"}], "no row has a text"),
        ([{"text": 5, "label": "x"}], 'line 1: "text" must be a text, found 5'),
        (texts("a", ["b"]), r"line 2: \"label\" is \['b'\]"),
        (texts(1.5, float("nan")), 'line 2: "label" is nan'),
        (texts(["a"], [None]), 'line 2: "label" must be a list of names'),
        (texts([1, 0, 0], [0, 1, 0]), "names a class twice"),
        (texts([], []), "no text has a label"),
        (texts("a", "a"), "all texts have the label 'a'"),
    ],
)
def test_wrong_labels_are_named(read, rows, message):
    with pytest.raises(DataError, match=message):
        read("classification", rows)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_that_is_too_long_keeps_what_closes_it(read, name):
    tokenizer = TOKENIZERS[name]
    found = read("classification", texts("a", "b", "c"), tokenizer=tokenizer, max_length=6)
    whole = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    closing = whole[0][-1:] if name == "wordpiece" else []
    for sample, ids in zip(found.samples, whole, strict=False):
        assert list(sample.ids) == (ids if len(ids) <= 6 else ids[: 6 - len(closing)] + closing)
    cut = sum(len(ids) > 6 for ids in whole[:3])
    assert cut > 0
    assert f"{cut} texts are longer" in found.notes[0]


WORDS = ["서울에", "사는", "고객은", "몇", "명이야?", "12", "👨‍👩‍👧", "New York"]
TAGS = ["B-지역", "O", "B-사람", "O", "O", "B-수", "O", "B-지역"]


def tags_of(found, tokenizer, words, sample=0):
    """The tag of the first token of every word, told from what the tokens before it spell."""
    taken = found.samples[sample]
    ids, spans = tokenizer.encode_with_offsets(" ".join(words), add_special_tokens=True)
    assert list(taken.ids) == ids
    tagged = [(spans[i], label) for i, label in enumerate(taken.labels) if label != IGNORED]
    starts = [sum(len(word) + 1 for word in words[:n]) for n in range(len(words))]
    result = {}
    for (start, end), label in tagged:
        word = max(n for n, first in enumerate(starts) if first < end)
        assert start <= starts[word] + len(words[word])
        assert word not in result
        result[word] = found.labels[label]
    return [result.get(n) for n in range(len(words))]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_first_token_of_a_word_has_its_tag(read, name):
    rows = [{"tokens": WORDS, "tags": TAGS}, {"tokens": ["부산은"], "tags": ["B-지역"]}]
    found = read("token-classification", rows, tokenizer=TOKENIZERS[name])
    assert found.labels == ("B-사람", "B-수", "B-지역", "O")
    assert tags_of(found, TOKENIZERS[name], WORDS) == TAGS
    # No other token has one.
    for sample, words in zip(found.samples, (WORDS, ["부산은"]), strict=True):
        assert sum(label != IGNORED for label in sample.labels) == len(words)


def test_numbers_as_tags_are_in_order_and_those_of_a_model_stay(read):
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": [10, 0, 9.0]}]
    assert read("token-classification", rows).labels == ("0", "9", "10")
    known = ("O", "B", "I")
    rows = [{"tokens": ["a", "b"], "tags": ["I", "O"]}]
    found = read("token-classification", rows, known_labels=known)
    assert found.labels == known
    assert [label for label in found.samples[0].labels if label != IGNORED] == [2, 0]


def test_a_word_without_a_token_takes_no_tag_from_those_after_it(read):
    # BERT's normalisation drops what joins and control characters.
    words = ["서울", "\u200b", "\u200b부산은", "\x07", "있다."]
    tags = ["A", "B", "C", "D", "E"]
    tokenizer = TOKENIZERS["wordpiece"]
    found = read("token-classification", [{"tokens": words, "tags": tags}], tokenizer=tokenizer)
    assert tags_of(found, tokenizer, words) == ["A", None, "C", None, "E"]


def test_decomposed_hangul_keeps_its_tags(read):
    words = [unicodedata.normalize("NFD", word) for word in WORDS]
    found = read("token-classification", [{"tokens": words, "tags": TAGS}])
    assert list(found.samples[0].ids) == BYTES.encode(" ".join(WORDS), add_special_tokens=True)
    assert tags_of(found, BYTES, words) == TAGS


def test_words_that_do_not_fit_lose_their_tags_and_what_closes_a_text_stays(read):
    row, tokenizer = {"tokens": WORDS, "tags": TAGS}, TOKENIZERS["wordpiece"]
    (whole,) = read("token-classification", [row], tokenizer=tokenizer).samples
    found = read("token-classification", [row], tokenizer=tokenizer, max_length=5)
    (sample,) = found.samples
    assert list(sample.ids) == [*whole.ids[:4], tokenizer.sep_id]
    # Tags that are cut off are still classes.
    assert list(sample.labels) == [*whole.labels[:4], IGNORED]
    assert len(found.labels) == 4
    assert "1 texts are longer" in found.notes[0]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_words_have_their_own_tags(tmp_path_factory, name, words):
    words = [word for word in words if word.strip()] or ["가"]
    rows = json.dumps({"tokens": words, "tags": list(range(len(words)))})
    file = tmp_path_factory.getbasetemp() / f"{name}.jsonl"
    file.write_text(rows)
    tokenizer = TOKENIZERS[name]
    if len(tokenizer.encode(" ".join(words))) == 0:
        with pytest.raises(DataError, match="no word has a token"):
            read_labelled(Format.TOKEN_CLASSIFICATION, file, tokenizer, LONG)
        return
    found = read_labelled(Format.TOKEN_CLASSIFICATION, file, tokenizer, LONG)
    labels = [label for label in found.samples[0].labels if label != IGNORED]
    assert labels == sorted(set(labels))
    for number, tag in enumerate(tags_of(found, TOKENIZERS[name], words)):
        assert tag in (None, str(number))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "lists of one length"),
        ({"tokens": "a b", "tags": "O O"}, "lists of one length"),
        ({"tokens": [], "tags": []}, "none of them empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "none of them empty"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "holds None; every word needs a tag"),
        ({"tokens": ["a"], "tags": [["O"]]}, r"holds \['O'\]"),
    ],
)
def test_wrong_tags_are_named(read, row, message):
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read("token-classification", [{"tokens": ["a"], "tags": ["O"]}, row])


def test_words_of_which_none_is_read(read):
    row = {"tokens": ["서울"], "tags": ["O"]}
    with pytest.raises(DataError, match="line 1: no word has a token within the 2"):
        read("token-classification", [row], tokenizer=TOKENIZERS["wordpiece"], max_length=2)


def pairs(*scores, key="score"):
    return [
        {"sentence1": TEXTS[n % 4], "sentence2": TEXTS[(n + 1) % 4], key: score}
        for n, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ((0, 2.5, 5), [0, 0.5, 1]),
        ((0, 1.2), [0, 0.24]),
        ((0, 1, 0.5), [0, 1, 0.5]),
        ((-1, 0.25, 1), [-1, 0.25, 1]),
        ((0.5, 1.0000001), [0.5, 1.0000001]),  # a cosine of floats
        (("0.000", "5.000"), [0, 1]),  # a table of texts
    ],
)
def test_similarities_of_every_scale(read, scores, targets):
    found = read("pairs", pairs(*scores))
    assert [sample.target for sample in found.samples] == pytest.approx(targets)
    assert found.labels == ()
    first = found.samples[0]
    assert list(first.ids) == BYTES.encode(TEXTS[0], add_special_tokens=True)
    assert list(first.source) == BYTES.encode(TEXTS[1], add_special_tokens=True)


def test_pairs_without_a_similarity(read):
    rows = [{"anchor": a, "positive": b} for a, b in pairwise(TEXTS)]
    found = read("pairs", rows)
    assert found.scale is None
    assert not found.notes
    assert all(sample.target is None and len(sample.source) for sample in found.samples)
    # A score that the file has is not what such pairs are for; negatives are not read, and said so.
    found = read("pairs", [row | {"negative": "서울", "score": 1} for row in rows])
    assert found.scale is None
    assert '"negative" is not read' in found.notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pairs(0, 7), "runs from 0 to 7"),
        (pairs(-1, 3), "runs from -1 to 3"),
        (pairs(-2, 0), "runs from -2 to 0"),
        (pairs(1, None), 'line 2: "score" is None'),
        (pairs(1, "entailment"), "line 2: \"score\" is 'entailment'"),
        (pairs(1, True), 'line 2: "score" is True'),
        (pairs(1, float("inf")), 'line 2: "score" is inf'),
        (pairs(0, 1, 2, key="label"), "looks like classes"),
        ([{"sentence1": "a", "sentence2": 5, "score": 1}], 'line 1: "sentence2" must be a text'),
    ],
)
def test_wrong_similarities_are_named(read, rows, message):
    with pytest.raises(DataError, match=message):
        read("pairs", rows)


def test_rows_without_a_text_are_left_out_and_counted(read):
    rows = texts("a", "b", "c", "d")
    rows[0]["text"], rows[2]["text"] = " \n", None
    found = read("classification", rows)
    assert (classes(found), list(found.lines)) == (["b", "d"], [2, 4])
    assert found.notes == ("2 rows without a text are left out, the first is 1.",)
    rows = pairs(1, 0.5, 0)
    del rows[1]["sentence2"]
    found = read("pairs", rows)
    assert [sample.target for sample in found.samples] == [1, 0]
    assert found.notes == ("1 rows without a text are left out, the first is 2.",)


def test_a_label_may_be_a_similarity(read):
    assert read("pairs", pairs(0, 1, key="label")).scale == 1
    assert read("pairs", pairs(0, 2.5, key="label")).scale == 5
    assert read("pairs", pairs(0, 1, 2, 3, 4, key="label")).scale == 5


def test_more_rows_than_are_read_at_once(read):
    rows = texts(*(f"반 {n % 7}" for n in range(2500)))
    found = read("classification", rows)
    assert classes(found) == [row["label"] for row in rows]
    assert list(found.lines) == list(range(1, 2501))
    with pytest.raises(DataError, match="line 2400:"):
        read("classification", [*rows[:2399], {"text": 5, "label": "a"}])


def test_real_similarities_and_ratings(hone_data, tmp_path):
    found = read_labelled(Format.PAIRS, hone_data / "kor_sts" / "dev.tsv", BYTES, 512)
    assert found.scale == 5
    targets = [sample.target for sample in found.samples]
    assert (min(targets), max(targets)) == (0, 1)
    file = hone_data / "ko_reviews" / "reviews-100k.jsonl.gz"
    small = tmp_path / "reviews.jsonl"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 2000)]
    small.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": "review", "label": "rating"}
    found = read_labelled(Format.CLASSIFICATION, small, BYTES, 512, columns)
    assert found.labels == tuple(map(str, range(1, 11)))
    assert len(found.samples) == 1999
    assert found.notes == ("1 rows without a text are left out, the first is 1,991.",)
