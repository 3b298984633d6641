import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import ConfigError, DataError
from hone.core.seeds import rng
from hone.data import IGNORED, PackedBatches, Sample, completion_sample, pack

END = 2
prompts = st.lists(st.integers(3, 30), max_size=12)
completions = st.lists(st.integers(3, 30), min_size=1, max_size=8).map(lambda ids: [*ids, END])
pairs = st.tuples(prompts, completions)
samples_of = st.lists(pairs, min_size=1, max_size=40)


def make(count, seed=0):
    random = rng(seed)
    lengths = [(random.randint(5, 60), random.randint(1, 40)) for _ in range(count)]
    return [
        completion_sample(
            [random.randint(3, 99) for _ in range(p)], [random.randint(3, 99) for _ in range(c)]
        )
        for p, c in lengths
    ]


def completions_of(pairs):
    return [completion_sample(prompt, completion) for prompt, completion in pairs]


def unpack(batch):
    """The (ids, trained labels) of each sample of a batch, read the way that a model does."""
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        inputs = batch.input_ids_N[start:end].tolist()
        labels = batch.labels_N[start:end].tolist()
        assert batch.position_ids_N[start:end].tolist() == list(range(end - start))
        trained = [label for label in labels if label != IGNORED]
        assert labels == [IGNORED] * (len(labels) - len(trained)) + trained
        assert labels[-1] != IGNORED
        assert inputs[1:][::-1] == [*inputs, labels[-1]][1:-1][::-1]
        yield [*inputs, labels[-1]], trained


def test_one_batch_by_hand():
    batch = pack(completions_of([([5, 6, 7], [8, 2]), ([], [9, 2]), ([4], [2])]))
    assert batch.input_ids_N.tolist() == [9, 4, 5, 6, 7, 8]
    assert batch.labels_N.tolist() == [2, 2, IGNORED, IGNORED, 8, 2]
    assert batch.position_ids_N.tolist() == [0, 0, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 1, 2, 6]
    assert (batch.max_length, batch.n_trained, batch.n_samples, batch.n_tokens) == (4, 4, 3, 6)
    assert batch.input_ids_N.dtype == batch.labels_N.dtype == np.int64
    assert batch.cu_seqlens.dtype == np.int32


@settings(max_examples=60, deadline=None)
@given(samples_of, st.integers(20, 80), st.integers(1, 5), st.integers(0, 3))
def test_each_sample_once_per_epoch_and_nothing_leaks(samples, tokens, buckets, seed):
    batches = PackedBatches(completions_of(samples), tokens, seed, bucket_batches=buckets)
    count = batches.batches_per_epoch
    for epoch in range(2):
        found = []
        for step in range(epoch * count, (epoch + 1) * count):
            batch = batches.at(step)
            assert batch.n_trained == (batch.labels_N != IGNORED).sum() > 0
            assert batch.max_length == np.diff(batch.cu_seqlens).max()
            found += [(tuple(ids), tuple(trained)) for ids, trained in unpack(batch)]
        expected = [((*p, *c), tuple(c if p else c[1:])) for p, c in samples]
        assert sorted(found) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(samples_of, st.integers(1, 6))
def test_splitting_a_batch_keeps_its_samples(samples, parts):
    batch = pack(completions_of(samples))
    pieces = batch.split(parts)
    assert len(pieces) == min(parts, batch.n_samples)
    assert sum(piece.n_trained for piece in pieces) == batch.n_trained
    assert np.array_equal(np.concatenate([p.input_ids_N for p in pieces]), batch.input_ids_N)
    assert [s for p in pieces for s in unpack(p)] == list(unpack(batch))


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("input_ids_N", "position_ids_N", "cu_seqlens", "labels_N")
    )


@pytest.mark.smoke
def test_a_step_is_the_same_whatever_was_asked_before():
    samples = make(300)
    one, other = PackedBatches(samples, 1000, 3), PackedBatches(samples, 1000, 3)
    in_order = [one.at(step) for step in range(60)]
    for step in (59, 3, 41, 0):
        assert same(other.at(step), in_order[step])
    assert not same(PackedBatches(samples, 1000, 4).at(0), in_order[0])


def test_batches_have_about_the_tokens_asked_for():
    samples = make(2000)
    batches = PackedBatches(samples, 1000, 0)
    sizes = [batches.at(step).n_tokens for step in range(batches.batches_per_epoch)]
    assert abs(np.mean(sizes) - 1000) < 10
    assert max(sizes) <= 1000 + 100
    assert min(sizes) >= 1000 - 100


def test_epochs_differ_and_lengths_have_no_place_in_them():
    samples = make(4000)
    batches = PackedBatches(samples, 1000, 0, bucket_batches=16)
    count = batches.batches_per_epoch
    first, second = (
        [set(batches.indices(step).tolist()) for step in range(start, start + count)]
        for start in (0, count)
    )
    assert not any(batch in second for batch in first)
    longest = np.array([batches.at(step).max_length for step in range(count)])
    assert abs(np.corrcoef(longest, np.arange(count))[0, 1]) < 0.2


def test_bucketing_brings_similar_lengths_together():
    samples = make(4000)

    def spread(buckets):
        batches = PackedBatches(samples, 1000, 0, bucket_batches=buckets)
        return np.mean([np.diff(batches.at(step).cu_seqlens).std() for step in range(50)])

    assert spread(16) < 0.2 * spread(1)


def test_long_samples_are_refused_or_dropped_but_never_cut():
    samples = [*make(50), completion_sample([5] * 300, [6] * 10)]
    with pytest.raises(DataError, match=r"1 of 51 samples are longer than 120 tokens.*309"):
        PackedBatches(samples, 1000, 0, max_length=120)
    batches = PackedBatches(samples, 1000, 0, max_length=120, drop_overlong=True)
    assert (batches.dropped, batches.n_samples) == (1, 50)
    with pytest.raises(DataError, match="all 1 are longer"):
        PackedBatches(samples[-1:], 1000, 0, max_length=120, drop_overlong=True)


@pytest.mark.parametrize(
    "sample",
    [
        completion_sample([4, 5], []),
        completion_sample([], [2]),
        Sample([4, 5]),
        Sample([4], [5], source=[]),
    ],
)
def test_a_sample_with_nothing_to_train_is_refused(sample):
    with pytest.raises(DataError, match="Sample 1 has nothing to train"):
        PackedBatches([completion_sample([4], [2]), sample], 100, 0)


def test_labels_and_tokens_must_be_as_many():
    with pytest.raises(DataError, match="Sample 0 has 1 labels for 2 tokens"):
        PackedBatches([Sample([4, 5], [5])], 100, 0)


def test_labels_that_are_only_drawn_later_may_be_missing():
    texts = [Sample([5] * 4), Sample([6] * 4)]

    def encode(index, epoch):
        labels = [IGNORED] * 4 if index else [IGNORED, 5, IGNORED, IGNORED]
        return Sample(texts[index].ids, labels)

    batches = PackedBatches(texts, 4, 0, encode=encode)
    assert sorted(batches.at(step).n_trained for step in range(2)) == [0, 1]


def test_no_samples_and_bad_settings_are_refused():
    with pytest.raises(DataError, match="No samples"):
        PackedBatches([], 100, 0)
    with pytest.raises(ConfigError, match="tokens_per_batch"):
        PackedBatches(make(3), 0, 0)


def test_one_huge_sample_leaves_no_batch_empty():
    samples = completions_of([([3], [2])] * 20 + [([3] * 900, [2])])
    batches = PackedBatches(samples, 40, 0, max_length=1000, bucket_batches=4)
    sizes = [len(batches.indices(step)) for step in range(batches.batches_per_epoch)]
    assert min(sizes) >= 1
    assert sum(sizes) == 21


def test_a_new_spelling_each_epoch_is_a_function_of_the_epoch():
    samples = make(40)

    def encode(index, epoch):
        return Sample([100 + epoch, *samples[index].ids], [IGNORED, *samples[index].labels])

    batches = PackedBatches(samples, 500, 0, encode=encode, variant="epoch mark")
    count = batches.batches_per_epoch
    for step in (0, count, 3 * count):
        assert {ids[0] for ids, _ in unpack(batches.at(step))} == {100 + step // count}
    assert same(batches.at(count), batches.at(count))


def test_a_spelling_that_became_too_long_gives_way():
    samples = completions_of([([5, 6], [2])] * 4)

    def encode(index, epoch):
        return completion_sample([7] * (3 if index else 50), [2])

    batches = PackedBatches(samples, 10, 0, max_length=10, encode=encode)
    seen = [ids for step in range(batches.batches_per_epoch) for ids, _ in unpack(batches.at(step))]
    assert sorted(seen) == [[5, 6, 2], *[[7, 7, 7, 2]] * 3]


def test_the_fingerprint_covers_data_order_and_variant():
    samples = make(30)
    base = PackedBatches(samples, 500, 0).fingerprint
    same = [Sample(np.array(s.ids), tuple(s.labels)) for s in samples]
    assert PackedBatches(same, 500, 0).fingerprint == base
    trained_more = [Sample(s.ids, [*s.ids[1:], s.labels[-1]]) for s in samples]
    for other in (
        PackedBatches(samples, 500, 1),
        PackedBatches(samples, 400, 0),
        PackedBatches(samples[::-1], 500, 0),
        PackedBatches(trained_more, 500, 0),
        PackedBatches([Sample(s.ids, s.labels, source=[1]) for s in samples], 500, 0),
        PackedBatches([Sample(s.ids, s.labels, target=1) for s in samples], 500, 0),
        PackedBatches(samples, 500, 0, variant="dropout 0.1"),
    ):
        assert other.fingerprint != base


def test_sources_and_targets_by_hand():
    samples = [
        Sample([5, 6], [6, 2], source=[7, 8, 9]),
        Sample([4], [2], source=[7]),
        Sample([4, 4, 4], [2, IGNORED, 2], source=[3]),
    ]
    batch = pack(samples)
    assert batch.input_ids_N.tolist() == [4, 4, 4, 4, 5, 6]
    assert batch.source_ids_M.tolist() == [7, 3, 7, 8, 9]
    assert batch.source_cu_seqlens.tolist() == [0, 1, 2, 5]
    assert (batch.n_tokens, batch.n_trained, batch.max_length) == (11, 5, 3)
    first, last = batch.split(2)
    assert (first.n_samples, last.n_samples) == (2, 1)
    assert (first.n_trained, last.n_trained) == (3, 2)
    assert last.source_ids_M.tolist() == [7, 8, 9]
    assert last.source_cu_seqlens.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("targets", "dtype"),
    [((2, 0, 1), np.int64), ((0.5, 1, 2), np.float32), (((1.0, 0.0),) * 3, np.float32)],
)
def test_whole_samples_with_targets(targets, dtype):
    samples = [
        Sample([9] * length, target=target)
        for length, target in zip((3, 2, 1), targets, strict=True)
    ]
    batch = pack(samples)
    assert batch.targets_B.dtype == dtype
    assert (
        batch.targets_B.tolist() == [list(t) if isinstance(t, tuple) else t for t in targets][::-1]
    )
    assert len(batch.labels_N) == 0
    assert batch.n_trained == 3
    assert [part.n_trained for part in batch.split(2)] == [2, 1]
    assert batch.split(2)[1].targets_B.tolist() == batch.targets_B.tolist()[2:]


def test_pairs_count_as_one_each():
    batch = pack([Sample([5, 6], source=[7]), Sample([5], source=[7, 8, 9])])
    assert (batch.n_trained, batch.targets_B) == (2, None)


def test_a_source_must_fit_the_model_too():
    samples = [Sample([5], [2], source=[7] * 20), Sample([5], [2], source=[7])]
    with pytest.raises(
        DataError, match=r"1 of 2 samples are longer than 10 tokens.*sample 0 has 20"
    ):
        PackedBatches(samples, 100, 0, max_length=10)
    # Twice ten positions are no sequence of twenty.
    samples = [Sample([5] * 10, [2] * 10, source=[7] * 10)]
    assert PackedBatches(samples, 100, 0, max_length=10).at(0).n_tokens == 20


def test_sources_count_among_the_tokens_of_a_batch():
    samples = [Sample([5] * 5, [2] * 5, source=[7] * 15)] * 100
    batches = PackedBatches(samples, 200, 0)
    assert batches.batches_per_epoch == 10
    assert {batches.at(step).n_tokens for step in range(10)} == {200}
