import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import ConfigError, DataError
from hone.data.corpus import Corpus, encode_texts, write_corpus
from hone.data.pretraining import Causal, DocumentPieces, RandomWindows, Windows, text_batches
from hone.text.tokenizer import Tokenizer

END = 1
documents_of = st.lists(st.lists(st.integers(2, 500), max_size=40), min_size=1, max_size=12).filter(
    any
)


def numbered(*lengths):
    """Documents whose tokens tell document and place: 100, 101, ...; 200, 201, ..."""
    return Corpus.of([range(100 * n, 100 * n + length) for n, length in enumerate(lengths, 1)])


def pieces_of(pieces, epoch):
    return [pieces.piece(index, epoch).tolist() for index in range(len(pieces.sizes))]


@pytest.mark.smoke
def test_documents_stand_behind_one_another():
    corpus = Corpus.of([[5, 6], [], np.array([7])], END)
    assert corpus.ids.tolist() == [5, 6, END, 7, END]
    assert corpus.bounds.tolist() == [0, 3, 5]
    assert (len(corpus), corpus.documents, corpus.ids.dtype) == (5, 2, np.uint16)
    assert Corpus.of([[70_000]]).ids.dtype == np.uint32


@settings(max_examples=40)
@given(documents_of)
def test_a_corpus_on_the_disk_is_the_one_in_memory(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    here = Corpus.of(documents, END)
    there = write_corpus(folder, iter(documents), 501, END)
    assert isinstance(there.ids, np.memmap)
    assert np.array_equal(here.ids, there.ids)
    assert np.array_equal(here.bounds, there.bounds)
    assert (
        here.fingerprint
        == there.fingerprint
        == Corpus(here.ids.astype(int), here.bounds).fingerprint
    )


def test_the_fingerprint_covers_tokens_and_bounds():
    ids = np.arange(10)
    base = Corpus(ids).fingerprint
    assert Corpus(ids, np.array([0, 4, 10])).fingerprint != base
    ids = ids.copy()
    ids[-1] = 3
    assert Corpus(ids).fingerprint != base


def test_texts_are_encoded_in_order():
    texts = ["나는 학생입니다.", "오늘은 비가 온다.", "abc"] * 700
    tokenizer = Tokenizer.train(texts, 300)
    encoded = list(encode_texts(iter(texts), tokenizer))
    assert encoded == [tokenizer.encode(text) for text in texts]


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="no tokens"):
        Corpus.of([[], []])
    with pytest.raises(DataError, match="must rise from 0 to the 4 tokens"):
        Corpus(np.arange(4), np.array([0, 2, 2, 4]))
    with pytest.raises(DataError, match="Document 1 holds the token 9; the vocabulary has 9"):
        write_corpus(tmp_path / "a", [[1], [9]], 9)
    with pytest.raises(DataError, match="no tokens"):
        write_corpus(tmp_path / "a", [], 9)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="does not exist"):
        Corpus.open(tmp_path / "a")


def test_a_damaged_corpus_is_refused(tmp_path):
    write_corpus(tmp_path / "a", [[1, 2, 3]], 9)
    (tmp_path / "a" / "ids.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(DataError, match=r"ids\.bin has 4 bytes.* 3 numbers of 2 bytes"):
        Corpus.open(tmp_path / "a")
    (tmp_path / "a" / "corpus.json").write_text(json.dumps({"dtype": "object"}))
    with pytest.raises(DataError, match="does not describe a corpus"):
        Corpus.open(tmp_path / "a")


def test_the_last_share_is_held_out():
    corpus = numbered(6, 10, 4)
    train, held_out = corpus.split(0.1)
    assert (len(train), len(held_out)) == (18, 2)
    assert train.bounds.tolist() == [0, 6, 16, 18]
    assert held_out.bounds.tolist() == [0, 2]
    train, held_out = corpus.split(0.1, by_document=True)
    assert train.bounds.tolist() == [0, 6, 16]
    assert held_out.ids.tolist() == [300, 301, 302, 303]
    for share in (0.0, 1.0, 0.999, -1):
        with pytest.raises(ConfigError, match="held-out share"):
            corpus.split(share)
    with pytest.raises(ConfigError, match="one document"):
        numbered(5).split(0.5, by_document=True)


@settings(max_examples=60)
@given(st.integers(2, 80), st.integers(1, 20), st.integers(0, 1), st.integers(0, 3))
def test_windows_hold_each_token_once(total, length, overlap, epoch):
    if total < length + overlap:
        return
    pieces = Windows(Corpus(np.arange(total)), length, 0, overlap)
    found = pieces_of(pieces, epoch)
    assert {len(piece) for piece in found} == {length + overlap} == set(pieces.sizes)
    inputs = [token for piece in found for token in piece[:length]]
    assert len(inputs) == len(set(inputs)) == total // length * length
    ring = [*range(total)] * 3
    assert all(piece == ring[piece[0] : piece[0] + length + overlap] for piece in found)


def test_windows_begin_elsewhere_in_every_epoch():
    pieces = Windows(Corpus(np.arange(1000)), 10, 0)
    starts = [pieces.piece(0, epoch)[0] for epoch in range(20)]
    assert len({start % 10 for start in starts}) > 5
    assert len(set(starts)) == 20
    again = Windows(Corpus(np.arange(1000)), 10, 0)
    assert [again.piece(0, epoch)[0] for epoch in range(20)] == starts


def test_random_windows_begin_anywhere():
    corpus = Corpus(np.arange(50))
    pieces = RandomWindows(corpus, 9, 0, 1, count=2000)
    found = pieces_of(pieces, 0)
    assert all(piece == [*range(piece[0], piece[0] + 10)] for piece in found)
    starts, counts = np.unique([piece[0] for piece in found], return_counts=True)
    assert starts.tolist() == list(range(41))
    assert counts.min() > 20
    assert pieces_of(pieces, 1) != found


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 15), st.integers(0, 3))
def test_pieces_of_documents_join_to_documents(lengths, most, epoch):
    corpus = numbered(*lengths)
    pieces = DocumentPieces(corpus, most, 0)
    found = pieces_of(pieces, epoch)
    assert [token for piece in found for token in piece] == corpus.ids.tolist()
    assert all(1 <= len(piece) <= most for piece in found)
    assert all(len({token // 100 for token in piece}) == 1 for piece in found)
    assert len(found) == sum(-(-length // most) for length in lengths)
    assert max(map(len, found)) <= max(pieces.sizes)


def test_pieces_of_long_documents_are_cut_elsewhere_in_every_epoch():
    pieces = DocumentPieces(numbered(95), 10, 0)
    cuts = [tuple(len(piece) for piece in pieces_of(pieces, epoch)) for epoch in range(30)]
    assert len(set(cuts)) == 6
    assert all(cut[1:-1] == (10,) * 8 for cut in cuts)


def test_the_end_token_is_learnt_and_never_an_input_of_its_document():
    corpus = Corpus.of([[5, 6, 7, 8], [9]], END)
    batches = text_batches(corpus, Causal(), 3, 5, 0, cut="documents")
    rows = []
    for step in range(batches.batches_per_epoch):
        batch = batches.at(step)
        for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            rows.append((batch.input_ids_N[a:b].tolist(), batch.labels_N[a:b].tolist()))
    pairs = sorted((x, y) for inputs, labels in rows for x, y in zip(inputs, labels, strict=True))
    assert pairs == [(5, 6), (6, 7), (7, 8), (8, END), (9, END)]


def test_causal_batches_of_windows():
    corpus = Corpus(np.arange(1000).astype(np.uint16))
    batches = text_batches(corpus, Causal(), 20, 100, 0)
    assert batches.batches_per_epoch == 10
    seen = []
    for step in range(10):
        batch = batches.at(step)
        assert np.diff(batch.cu_seqlens).tolist() == [20] * 5
        assert batch.n_trained == 100
        assert np.array_equal(batch.labels_N, (batch.input_ids_N + 1) % 1000)
        seen += batch.input_ids_N.tolist()
    assert sorted(seen) == list(range(1000))
    again = text_batches(corpus, Causal(), 20, 100, 0)
    assert np.array_equal(again.at(13).input_ids_N, batches.at(13).input_ids_N)


def test_the_fingerprint_of_batches_covers_corpus_cut_task_and_seed():
    corpus, other = Corpus(np.arange(100)), Corpus(np.arange(100)[::-1].copy())
    base = text_batches(corpus, Causal(), 10, 40, 0).fingerprint
    assert text_batches(corpus, Causal(), 10, 40, 0).fingerprint == base
    for batches in (
        text_batches(other, Causal(), 10, 40, 0),
        text_batches(corpus, Causal(), 9, 40, 0),
        text_batches(corpus, Causal(), 10, 50, 0),
        text_batches(corpus, Causal(), 10, 40, 1),
        text_batches(corpus, Causal(), 10, 40, 0, cut="random"),
        text_batches(corpus, Causal(), 10, 40, 0, cut="documents"),
    ):
        assert batches.fingerprint != base


def test_settings_that_fit_no_corpus_are_refused():
    corpus = Corpus(np.arange(10))
    with pytest.raises(DataError, match="10 tokens, fewer than the 11 of one window"):
        text_batches(corpus, Causal(), 10, 40, 0)
    with pytest.raises(ConfigError, match="no room for text"):
        text_batches(corpus, Causal(), 0, 40, 0)
    with pytest.raises(ConfigError, match="windows, random, documents, not 'lines'"):
        text_batches(corpus, Causal(), 4, 40, 0, cut="lines")
    with pytest.raises(DataError, match=r"No document .* more than 1 tokens"):
        text_batches(Corpus.of([[5], [6]]), Causal(), 4, 40, 0, cut="documents")
