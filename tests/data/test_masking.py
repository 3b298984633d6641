import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.data import IGNORED
from hone.data.corpus import Corpus
from hone.data.masking import Masked, choose_words
from hone.data.pretraining import DocumentPieces, TextSamples, text_batches
from hone.data.words import TokenTexts
from hone.text.tokenizer import Tokenizer

CLS, SEP, MASK, PAD, VOCABULARY = 1, 2, 3, 0, 1000
SPECIAL = (PAD, CLS, SEP, MASK)
KOREAN = "어머니께서 시장에서 사과를 사 오셨습니다 그리고 우리는 맛있게 먹었습니다 " * 3


def task(**options):
    return Masked(MASK, VOCABULARY, SPECIAL, (CLS,), (SEP,), **options)


def random(seed=0):
    return np.random.default_rng(seed)


def text(length, seed=0):
    return random(seed).integers(len(SPECIAL), VOCABULARY, length)


def korean_tokenizer(mask="[MASK]"):
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=56, special_tokens=names)
    backend.train_from_iterator([KOREAN], trainer)
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return Tokenizer(backend, config | {"sep_token": "[SEP]", "mask_token": mask})


@pytest.mark.smoke
@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(0, 100))
def test_what_is_asked_and_what_is_shown(length, seed):
    piece = text(length, seed)
    sample = task().sample(piece, random(seed))
    whole = np.concatenate(([CLS], piece, [SEP]))
    asked = sample.labels != IGNORED
    assert asked.sum() == max(1, round(0.15 * length))
    assert np.array_equal(sample.labels[asked], whole[asked])
    assert np.array_equal(sample.ids[~asked], whole[~asked])
    assert not np.isin(whole[asked], SPECIAL).any()
    changed = sample.ids[asked & (sample.ids != whole)]
    assert np.isin(changed[np.isin(changed, SPECIAL)], [MASK]).all()


def test_eighty_ten_ten():
    piece = text(200_000)
    sample = task().sample(piece, random())
    asked = sample.labels != IGNORED
    ids, labels = sample.ids[asked], sample.labels[asked]
    assert asked.sum() == 30_000
    masked, kept = (ids == MASK).mean(), (ids == labels).mean()
    # Three standard deviations are 0.007 and 0.005.
    assert masked == pytest.approx(0.8, abs=0.008)
    assert kept == pytest.approx(0.1, abs=0.006)
    others = ids[(ids != MASK) & (ids != labels)]
    assert len(np.unique(others)) > 0.9 * VOCABULARY
    assert others.min() >= len(SPECIAL)
    # Where in the text is no matter either.
    assert np.histogram(np.flatnonzero(asked), 10)[0].min() > 2700


def test_the_shares_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = korean_tokenizer()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    collate = transformers.DataCollatorForLanguageModeling(theirs, seed=0)
    ids = tokenizer.encode(KOREAN, add_special_tokens=True)
    rows = collate([{"input_ids": ids}] * 600)
    ours = [Masked.of(tokenizer).sample(np.array(ids[1:-1]), random(seed)) for seed in range(600)]

    def shares(shown, asked):
        chosen = asked != IGNORED
        return (
            chosen.mean(),
            (shown[chosen] == tokenizer.mask_id).mean(),
            (shown[chosen] == asked[chosen]).mean(),
        )

    expected = shares(rows["input_ids"].numpy(), rows["labels"].numpy())
    found = shares(np.stack([s.ids for s in ours]), np.stack([s.labels for s in ours]))
    assert found == pytest.approx(expected, abs=0.02)


def test_words_are_masked_whole_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = korean_tokenizer()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs(KOREAN, return_offsets_mapping=True, return_special_tokens_mask=True)
    collate = transformers.DataCollatorForLanguageModeling(
        theirs, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0
    )
    words, _ = collate._calc_word_ids_and_prob_mask(
        np.array([encoded["offset_mapping"]]), np.array([encoded["special_tokens_mask"]])
    )
    ids = np.array(encoded["input_ids"])
    assert len(set(words[0])) < 0.7 * len(ids), "most words have several tokens"
    assert np.array_equal(
        np.diff(words[0][1:-1]) != 0, TokenTexts.of(tokenizer).word_starts(ids[1:-1])[1:]
    )
    whole = Masked.of(tokenizer, whole_words=True)
    for seed in range(50):
        asked = whole.sample(ids[1:-1], random(seed)).labels != IGNORED
        assert asked.any()
        for number in set(words[0]) - {-1}:
            assert len(set(asked[words[0] == number])) == 1


@settings(max_examples=100)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_never_more_words_than_the_share(lengths, share, seed):
    word = np.repeat(np.arange(len(lengths)), lengths)
    chosen = choose_words(word, np.ones(len(word), dtype=bool), share, random(seed))
    wanted = max(1, round(share * len(word)))
    assert len(chosen) <= max(wanted, min(lengths))
    assert len(chosen) >= 1
    assert len(chosen) > wanted - max(lengths)
    assert {int(w) for w in word[chosen]} == {
        w for w in range(len(lengths)) if np.isin(np.flatnonzero(word == w), chosen).all()
    }


def test_special_tokens_inside_a_text_are_never_masked():
    piece = np.array([SEP] * 50 + [7])
    sample = task().sample(piece, random())
    assert np.flatnonzero(sample.labels != IGNORED).tolist() == [51]
    nothing = task().sample(np.array([SEP, PAD]), random())
    assert set(nothing.labels) == {IGNORED}


def test_masks_are_drawn_anew_each_epoch_and_the_same_when_asked_again():
    corpus = Corpus(text(3000))

    def batches():
        return text_batches(corpus, task(), 64, 256, 0, cut="documents")

    one, other = batches(), batches()
    epoch = one.batches_per_epoch
    for step in (0, epoch, 5, 2 * epoch + 1):
        a, b = one.at(step), other.at(step)
        assert np.array_equal(a.input_ids_N, b.input_ids_N)
        assert np.array_equal(a.labels_N, b.labels_N)
        assert a.max_length <= 64
        assert a.n_trained > 0
    asked = [np.mean([one.at(e * epoch + s).n_trained for s in range(epoch)]) for e in (0, 1)]
    assert asked[0] == pytest.approx(asked[1], rel=0.1)
    assert not np.array_equal(one.at(0).labels_N, one.at(epoch).labels_N)


def test_the_same_piece_is_masked_otherwise_in_the_next_epoch():
    corpus = Corpus(text(50))
    samples = TextSamples(corpus, DocumentPieces(corpus, 62, 0), task(), 0)
    draws = [samples.draw(0, epoch) for epoch in range(4)]
    assert len({tuple(draw.labels.tolist()) for draw in draws}) == 4
    assert np.array_equal(samples.draw(0, 2).ids, draws[2].ids)


def test_the_tokenizer_says_what_stands_around_a_text():
    found = Masked.of(korean_tokenizer())
    assert (found.prefix, found.suffix, found.mask_id) == ((2,), (3,), 4)
    assert found.piece_length(64) == 62
    assert found.special_ids == (0, 1, 2, 3, 4)


def test_settings_are_part_of_the_fingerprint():
    corpus = Corpus(text(500))
    tokenizer = korean_tokenizer()
    tasks = [
        Masked.of(tokenizer),
        Masked.of(tokenizer, share=0.2),
        Masked.of(tokenizer, mask_share=0.7),
        Masked.of(tokenizer, whole_words=True),
    ]
    prints = [text_batches(corpus, each, 64, 256, 0).fingerprint for each in [*tasks, tasks[-1]]]
    assert len(set(prints)) == len(tasks)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"share must be between 0 and 1, not 1\.5"):
        task(share=1.5)
    with pytest.raises(ConfigError, match="more than all chosen tokens"):
        task(mask_share=0.8, random_share=0.3)
    with pytest.raises(ConfigError, match="none can be drawn"):
        Masked(0, 1, (0,))
    with pytest.raises(ConfigError, match="no mask token"):
        Masked.of(Tokenizer.train(["a"], 260))
