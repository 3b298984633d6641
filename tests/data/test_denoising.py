import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.data.corpus import Corpus
from hone.data.denoising import Infilling, SpanCorruption, infill, random_spans_noise_mask
from hone.data.pretraining import text_batches
from hone.data.words import TokenTexts
from hone.text.tokenizer import Tokenizer

START, END, MASK, BOS = 0, 1, 2, 3
SENTINELS = tuple(range(199, 99, -1))  # as in T5, the first is the highest
WORDS = st.lists(st.integers(4, 99), min_size=1, max_size=120)


def t5(**options):
    return SpanCorruption(SENTINELS, END, START, **options)


def bart(**options):
    return Infilling(MASK, START, (BOS,), (END,), **options)


def random(seed=0):
    return np.random.default_rng(seed)


def put_back(source, target):
    """The text that a source and its target tell together."""
    source, target = list(source), list(target)
    assert source.pop() == target.pop() == END
    spans, sentinel = {}, None
    for token in target:
        if token in SENTINELS:
            sentinel = token
            assert sentinel not in spans
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    assert [t for t in source if t in SENTINELS] == list(spans) == list(SENTINELS[: len(spans)])
    assert all(spans.values())
    return [token for t in source for token in spans.get(t, [t])]


@pytest.mark.smoke
@settings(max_examples=50)
@given(WORDS, st.integers(0, 99), st.sampled_from([0.15, 0.5, 0.8]), st.sampled_from([1, 3, 10]))
def test_spans_put_back_are_the_text(piece, seed, share, span):
    task = t5(share=share, mean_span=span)
    sample = task.sample(np.array(piece, dtype=np.uint16), random(seed))
    assert put_back(sample.source, sample.labels) == piece
    assert sample.ids.tolist() == [START, *sample.labels[:-1]]
    planned = task.positions(np.array([len(piece)]))
    assert (len(sample.ids), len(sample.source)) == (planned[0][0], planned[1][0])


def test_one_text_by_hand():
    """The example of the paper's figure 2, with the spans that it chose."""
    text = "Thank you for inviting me to your party last week ."
    ids = np.arange(10, 10 + len(text.split()))
    dropped = np.isin(text.split(), ["for", "inviting", "last"])
    source, target = t5()._parted(ids, dropped)
    assert source.tolist() == [10, 11, 199, 14, 15, 16, 17, 198, 19, 20, END]
    assert target.tolist() == [199, 12, 13, 198, 18, END]


@pytest.mark.parametrize(("length", "tokens", "targets"), [(512, 568, 114), (128, 141, 29)])
def test_lengths_are_those_of_t5(length, tokens, targets):
    """What T5's own pre-training computed for sources of 512: 568 tokens and targets of 114."""
    task = t5()
    size = task.piece_length(length)
    assert size == tokens
    ids, sources = task.positions(np.array([size]))
    assert (sources[0], ids[0]) == (length, targets)


def test_the_share_and_the_spans_are_those_asked_for():
    runs = []
    for seed in range(300):
        mask = random_spans_noise_mask(568, 85, 28, random(seed))
        assert mask.sum() == 85
        assert not mask[0]
        assert mask[-1]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask, [0]))))
        assert len(edges) == 2 * 28
        runs += (edges[1::2] - edges[::2]).tolist()
    assert np.mean(runs) == pytest.approx(85 / 28)
    # A part of a random sum is 1 with the probability (parts - 1) / (total - 1).
    assert np.mean(np.array(runs) == 1) == pytest.approx(27 / 84, abs=0.02)


def test_every_way_to_cut_is_as_likely():
    found = [tuple(random_spans_noise_mask(6, 3, 2, random(seed))) for seed in range(2000)]
    masks, counts = np.unique(found, axis=0, return_counts=True)
    assert len(masks) == 4
    assert counts.min() > 400


def test_more_spans_than_sentinels_are_joined():
    task = SpanCorruption((9, 8), END, START)
    sample = task.sample(np.arange(10, 210), random())
    assert [t for t in sample.source if t in (8, 9)] == [9, 8]
    assert len(sample.labels) == 30 + 2 + 1


@settings(max_examples=80)
@given(WORDS, st.integers(0, 99), st.floats(0.05, 0.9))
def test_infilling_hides_the_share_and_keeps_the_order(piece, seed, share):
    ids = np.array(piece)
    found = infill(ids, MASK, share, 3.0, random(seed))
    kept = found[found != MASK].tolist()
    assert len(kept) == len(piece) - max(round(share * len(piece)), 1)
    rest = iter(piece)
    assert all(token in rest for token in kept)
    assert len(found) <= len(piece)


def test_spans_are_poisson_and_may_be_empty():
    ids = np.arange(1000, 21_000)
    found = infill(ids, MASK, 0.3, 3.0, random())
    masks = (found == MASK).sum()
    # About 6,000 hidden tokens in spans of three on average.
    assert masks == pytest.approx(2000, rel=0.05)
    kept = found[found != MASK]
    gap = np.diff(np.concatenate(([999], kept, [21_000]))) - 1  # hidden between two that stay
    number = np.bincount(np.cumsum(found != MASK)[found == MASK], minlength=len(gap))
    alone = gap[number == 1]
    assert (alone == 0).mean() == pytest.approx(np.exp(-3), abs=0.02)
    assert alone.mean() == pytest.approx(3, abs=0.2)
    assert (alone == 3).mean() == pytest.approx(0.224, abs=0.04)


def letters(text):
    """One token for each letter."""
    known = sorted(set(text))
    spelled = [b"?"] * 4 + [letter.encode() for letter in known]
    return np.array([known.index(letter) + 4 for letter in text]), TokenTexts(spelled)


def test_sentences_change_their_order_and_the_target_does_not():
    text = "나는 학교에 갔다. 비가 왔다! 집에 왔어요 그래서 잤다. 끝."
    ids, sentences = letters(text)
    task = bart(share=1e-9, sentences=sentences)
    orders = set()
    for seed in range(200):
        sample = task.sample(ids, random(seed))
        assert sample.labels.tolist() == [BOS, *ids, END]
        assert sample.ids.tolist() == [START, BOS, *ids]
        assert (sample.source[0], sample.source[-1]) == (BOS, END)
        assert (sample.source == MASK).sum() >= 1, "one token is always hidden"
        orders.add(tuple(sample.source[1:-1][sample.source[1:-1] != MASK][:3]))
    assert len(orders) >= 5
    unmoved = bart(share=1e-9).sample(ids, random())
    kept = unmoved.source[1:-1][unmoved.source[1:-1] != MASK].tolist()
    rest = iter(ids.tolist())
    assert all(token in rest for token in kept)


@pytest.mark.parametrize("task", [t5(), bart()])
@pytest.mark.parametrize("cut", ["windows", "documents"])
def test_batches_fit_and_repeat(task, cut):
    source = random()
    documents = [source.integers(4, 99, source.integers(1, 90)) for _ in range(60)]
    batches, again = (
        text_batches(Corpus.of(documents), task, 48, 300, 0, cut=cut) for _ in range(2)
    )
    epoch = batches.batches_per_epoch
    for step in (0, 1, epoch, 2 * epoch):
        one, other = batches.at(step), again.at(step)
        assert one.max_length <= 48
        assert np.diff(one.source_cu_seqlens).max() <= 48
        for name in ("input_ids_N", "labels_N", "source_ids_M", "source_cu_seqlens"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert one.n_trained == len(one.labels_N) == len(one.input_ids_N)
    assert not np.array_equal(batches.at(0).source_ids_M, batches.at(epoch).source_ids_M)


def tokenizer(**config):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(["<pad>", "</s>", "<mask>", "<extra_id_1>", "<extra_id_0>"])
    backend.add_tokens(["a"])
    return Tokenizer(backend, config)


def test_the_tokenizer_names_the_tokens():
    task = SpanCorruption.of(tokenizer(eos_token="</s>"), 0)
    assert (task.sentinels, task.end_id, task.start_id) == ((4, 3), 1, 0)
    infilling = Infilling.of(tokenizer(eos_token="</s>", mask_token="<mask>"), 0)
    assert (infilling.mask_id, infilling.prefix, infilling.suffix) == (2, (), (1,))


def test_what_is_missing_is_said():
    with pytest.raises(ConfigError, match="no token <extra_id_0>"):
        SpanCorruption.of(Tokenizer.train(["a"], 260), 0)
    with pytest.raises(ConfigError, match="no end token"):
        SpanCorruption.of(tokenizer(), 0)
    with pytest.raises(ConfigError, match="no mask token"):
        Infilling.of(tokenizer(eos_token="</s>"), 0)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="share must be above 0 and below 1"):
            t5(share=share)
    for span in (0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="mean_span must be at least 1"):
            bart(mean_span=span)
