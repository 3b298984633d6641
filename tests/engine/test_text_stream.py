import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from hone.engine.text_stream import TextStream
from hone.text.tokenizer import Tokenizer

pytestmark = pytest.mark.smoke

TEXT = st.text(st.sampled_from("가나힣 ab\n.😀👨‍👩‍👧é"), max_size=30)


def stream_of(tokenizer, ids, stop=(), prompt=()):
    stream = TextStream(tokenizer, prompt, stop)
    pieces = [stream.push([i]) for i in ids]
    return stream, [*pieces, stream.finish()]


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_the_pieces_join_to_the_text_and_cut_no_character(tokenizer, text):
    ids = tokenizer.encode(text)
    stream, pieces = stream_of(tokenizer, ids)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=40), prompt=st.lists(st.integers(3, 399)))
def test_any_tokens_even_broken_bytes_join_to_what_decoding_gives(tokenizer, ids, prompt):
    stream, pieces = stream_of(tokenizer, ids)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids)
    at_once = TextStream(tokenizer, prompt)
    at_once.push(ids)
    at_once.finish()
    assert at_once.text == stream_of(tokenizer, ids, prompt=prompt)[0].text


@settings(max_examples=150, deadline=None)
@given(text=TEXT, stop=st.lists(st.text("가나ab .\n😀", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_string_is_shown(tokenizer, text, stop):
    text = tokenizer.decode(tokenizer.encode(text))
    cuts = [text.find(item) for item in stop if item in text]
    stream, pieces = stream_of(tokenizer, tokenizer.encode(text), stop)
    shown = "".join(pieces)
    assert shown == stream.text
    assert stream.stopped == bool(cuts)
    assert not any(item in shown for item in stop)
    assert text.startswith(shown)
    if cuts:
        # Tokens arrive one by one: the first stop string to be complete counts.
        assert len(shown) >= min(cuts)
    else:
        assert shown == text


def test_a_stop_string_over_several_tokens_is_held_back(tokenizer):
    stream = TextStream(tokenizer, (), ["END;"])
    ids = [tokenizer.encode(part) for part in ("a E", "N", "D", "x E", "ND", ";", " more")]
    shown = [stream.push(part) for part in ids]
    assert shown == ["a ", "", "", "ENDx ", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "a ENDx "


def test_what_was_held_back_is_shown_at_the_end(tokenizer):
    stream = TextStream(tokenizer, (), ["END"])
    assert stream.push(tokenizer.encode("the EN")) == "the "
    assert stream.finish() == "EN"
    assert not stream.stopped


def test_stop_strings_can_be_switched_off_for_the_first_tokens(tokenizer):
    stream = TextStream(tokenizer, (), ["a"])
    assert stream.push(tokenizer.encode("bab"), may_stop=False) == "bab"
    assert stream.push(tokenizer.encode("ba")) == "b"
    assert stream.stopped


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer that, as Llama 2's, drops the space before the first word it decodes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab 가😀", max_size=20))
def test_spaces_between_words_survive_a_sentencepiece_decoder(sentencepiece, text):
    ids = sentencepiece.encode(text)
    stream, pieces = stream_of(sentencepiece, ids, prompt=[1])
    assert "".join(pieces) == stream.text == sentencepiece.decode(ids)


def test_a_continuation_keeps_its_leading_space(sentencepiece):
    prompt, ids = [1, *sentencepiece.encode("b")], sentencepiece.encode("a b")
    stream, _ = stream_of(sentencepiece, ids, prompt=prompt)
    assert stream.text == " a b"
