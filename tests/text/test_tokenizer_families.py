"""Every kind of tokenizer against transformers on the same directory."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_zoo import FAMILIES, KINDS, make

from hone.text.chat import ChatTemplate
from hone.text.special_tokens import ROLES
from hone.text.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "user", "content": "서울의 고객은 몇 명?"},
    {"role": "assistant", "content": "3 customers."},
    {"role": "user", "content": "Why?"},
]
# Spellings of special tokens, and what tokenizers are known to stumble over.
FRAGMENTS = [
    *("<s>", "</s>", "<unk>", "<pad>", "<mask>", "[MASK]", "[CLS]", "[SEP]", "<bos>", "<|im_end|>"),
    *("<|endoftext|>", "<|begin_of_text|>", "<|end|>", "<|user|>", "<extra_id_3>", "<0x41>", "▁"),
    *(" ", "  ", "\n", "\r\n", "\t", "\x00", "\x07", "\u200b", "\ufeff", "\u2028", "\xa0"),
    *(
        "don't",
        " 's",
        " n't",
        " .",
        " ' ",
        "12,345",
        "서울",
        "고객은",
        "ㅋㅋㅋ",
        "é",
        "👩‍👩‍👧",
        "�",
    ),
    unicodedata.normalize("NFD", "한국어"),
]
TEXT = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=8,
).map("".join)
PLAIN = ["hi", "How many customers live in Seoul?", "서울에 사는 고객은?", " two", "\n", ""]
every_kind = pytest.mark.parametrize("kind", KINDS)
some = settings(max_examples=30)


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Each family's tokenizer as hone and as transformers read it."""
    from transformers import AutoTokenizer

    found = {}

    def open_family(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            make(name, folder)
            found[name] = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
        return found[name]

    return open_family


def one_bos(ids, theirs):
    """What transformers gives, but for the BOS tokens that it doubles."""
    bos = theirs.bos_token_id
    adds = bos is not None and theirs("a")["input_ids"][0] == bos
    while adds and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


@every_kind
@some
@example(text="<s><s>a")
@example(text="</s> <mask> a")
@given(text=TEXT)
def test_ids_are_those_of_transformers(opened, kind, text):
    ours, theirs = opened(kind)
    bare = theirs(text, add_special_tokens=False)["input_ids"]
    framed = one_bos(theirs(text)["input_ids"], theirs)
    assert ours.encode(text) == bare
    assert ours.encode(text, add_special_tokens=True) == framed
    assert ours.encode_batch([text, "a", text]) == [bare, ours.encode("a"), bare]
    assert ours.encode_batch([text], add_special_tokens=True) == [framed]


@every_kind
@some
@given(data=st.data())
def test_text_is_that_of_transformers(opened, kind, data):
    ours, theirs = opened(kind)
    ids = data.draw(st.lists(st.integers(0, len(ours) - 1), max_size=20) | TEXT.map(ours.encode))
    for skip in (True, False):
        for clean in (None, True, False):
            expected = theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean
            )
            assert ours.decode(ids, skip, clean) == expected


@every_kind
@some
@example(first="<s>a", second="b")
@given(first=TEXT, second=TEXT.filter(bool))
def test_pairs_are_those_of_transformers(opened, kind, first, second):
    ours, theirs = opened(kind)
    for special in (True, False):
        options = {"add_special_tokens": special, "return_token_type_ids": True}
        expected = theirs(first, second, **options)
        ids, types = ours.encode_pair(first, second, add_special_tokens=special)
        kept = expected["input_ids"]
        if special and first:
            kept = one_bos(kept, theirs)
        surplus = len(expected["input_ids"]) - len(kept)
        assert (ids, types) == (kept, expected["token_type_ids"][surplus:])


@every_kind
@some
@given(text=TEXT)
def test_offsets_are_those_of_transformers(opened, kind, text):
    ours, theirs = opened(kind)
    for special in (True, False):
        expected = theirs(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, spans = ours.encode_with_offsets(text, add_special_tokens=special)
        assert len(ids) == len(spans)
        assert spans == expected["offset_mapping"][len(expected["input_ids"]) - len(ids) :]
        assert all(0 <= start <= end <= len(text) for start, end in spans)


def test_offsets_are_places_in_the_text_as_it_was_given(opened):
    ours, _ = opened("modernbert")
    text = "a\ud800 " + unicodedata.normalize("NFD", "한국") + " end"
    ids, spans = ours.encode_with_offsets(text)
    assert text[slice(*spans[-1])] in ("end", "nd", "d")
    assert ours.decode(ids).endswith("한국 end")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_roles_of_tokens_are_those_of_transformers(opened, family):
    ours, theirs = opened(family)
    for role in ROLES:
        name = role.removesuffix("_token")
        assert getattr(ours, role) == getattr(theirs, role)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{role}_id")
    assert ours.named_tokens == theirs.special_tokens_map
    assert ours.additional_tokens == [str(token) for token in theirs.extra_special_tokens]
    assert ours.vocab_size == len(ours) == len(theirs)
    special = {index for index, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.special_ids == special
    assert ours.model_max_length is None
    assert ours.id_to_token(5) == theirs.convert_ids_to_tokens(5)
    assert ours.token_to_id(ours.id_to_token(5)) == 5
    assert ours.token_to_id("no such token") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_is_never_written_twice(opened, family):
    ours, theirs = opened(family)
    bos, spelling = ours.bos_id, ours.bos_token or ""
    rendered = ChatTemplate(ours.chat_template, ours.config).render(CONVERSATION)
    assert rendered.startswith(f"{spelling}user: ")
    for text in [*PLAIN, spelling, rendered, *(spelling + plain for plain in PLAIN)]:
        for special in (False, True):
            ids = ours.encode(text, special)
            assert bos is None or ids[:2] != [bos, bos]
            assert ours.encode_batch([text], special) == [ids]
            assert ours.encode_with_offsets(text, special)[0] == ids
            assert ours.encode_pair(text, "a", special)[0][: len(ids)][:2] != [bos, bos]
    if theirs("a")["input_ids"][0] == bos:
        for plain in PLAIN:
            assert ours.encode(plain, True)[0] == bos
            assert ours.encode(spelling + plain, True)[0] == bos
            assert ours.encode(spelling * 3 + plain, True) == ours.encode(spelling + plain, True)
    assert ours.encode(rendered) == theirs.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, return_dict=False
    )


def test_a_token_that_stands_first_but_is_no_bos_is_left_alone(opened):
    ours, theirs = opened("bert")
    assert ours.encode("[CLS] a", True) == theirs("[CLS] a")["input_ids"]
    assert ours.encode("[CLS] a", True)[:2] == [ours.cls_id, ours.cls_id]
