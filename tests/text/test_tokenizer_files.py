"""What people's directories hold beside ``tokenizer.json``, and what is wrong with some of them."""

import json
import shutil
import time
import unicodedata

import pytest
import tokenizers
from tokenizer_zoo import KINDS, change_config, make
from tokenizers import pre_tokenizers

from hone.core.errors import CheckpointError
from hone.text.tokenizer import Tokenizer

TEXTS = ["Don't ask, 12,345 <s>times</s>.", " 서울 <mask>고객 [MASK]", "<pad>a<|endoftext|> b", ""]
HOSTILE = [
    unicodedata.normalize("NFD", "한국어 사용자는 몇 명이야?"),
    "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\u200b\u2028\ufeff",
    "a" * 100_000,
    "가" * 100_000,
    " " * 10_000 + "\n" * 10_000,
    "<s></s><unk><|im_start|><|im_end|>|||EMAIL_ADDRESS|||" * 10,
    "👩‍👩‍👧🇰🇷\U0010ffff\ufffd\ufffe",
    "e\u0301\u0327" * 50,
    "1234567890" * 100,
    "  leading and trailing  ",
]


def opened(folder):
    from transformers import AutoTokenizer

    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def assert_equal(ours, theirs, texts=TEXTS):
    assert ours.named_tokens == theirs.special_tokens_map
    assert len(ours) == len(theirs)
    for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"):
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_token_id")
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_here_is_read_there(tmp_path, kind):
    make(kind, tmp_path / "a")
    ours, theirs = opened(tmp_path / "a")
    ours.save(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / "b")
    again, read_there = opened(tmp_path / "b")
    assert again.fingerprint() == ours.fingerprint()
    assert again.chat_templates == ours.chat_templates
    assert read_there.chat_template == theirs.chat_template
    assert_equal(again, theirs)
    assert_equal(ours, read_there)
    assert repr(read_there.added_tokens_decoder) == repr(theirs.added_tokens_decoder)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2", "gemma3", "bert", "roberta", "t5"])
@pytest.mark.parametrize("config", [True, False])
def test_roles_that_no_file_names_are_those_of_the_class(tmp_path, kind, config):
    make(kind, tmp_path)
    class_name = json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    (tmp_path / "tokenizer_config.json").unlink()
    if config:
        said = {"model_max_length": 512, "tokenizer_class": class_name}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
        (tmp_path / "config.json").unlink()
    ours, theirs = opened(tmp_path)
    assert_equal(ours, theirs)
    assert ours.eos_id is not None or ours.sep_id is not None
    assert ours.model_max_length == (512 if config else None)


def test_the_class_may_stand_in_the_models_config(tmp_path):
    make("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    said = {"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours, theirs = opened(tmp_path)
    assert_equal(ours, theirs)
    assert ours.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("as_object", [True, False])
def test_an_old_directory_names_its_tokens_in_a_file_of_their_own(tmp_path, as_object):
    make("llama3", tmp_path)
    change_config(tmp_path, "bos_token", "eos_token")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "[P]"}
    if as_object:
        tokens = {role: {"content": token, **flags} for role, token in tokens.items()}
    tokens["additional_special_tokens"] = ["<x>", "<y>"]
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[P]": 900, "<z>": 901}))
    ours, theirs = opened(tmp_path)
    assert ours.pad_token == "[P]"
    assert ours.additional_tokens == ["<x>", "<y>"]
    assert_equal(ours, theirs, [*TEXTS, "a <x> b<y>[P]<z>"])


@pytest.mark.parametrize(
    "values",
    [
        {"pad_token": "<new>"},
        {"pad_token": {"__type": "AddedToken", "content": "<new>", "rstrip": True}},
        {"extra_special_tokens": ["<one>", "two"]},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"image_token": "<image>"},
        {"additional_special_tokens": ["<one>"]},
        {"split_special_tokens": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"eos_token": None},
        {"clean_up_tokenization_spaces": True},
    ],
)
@pytest.mark.parametrize("kind", ["llama3", "mistral", "bert"])
def test_what_the_config_says_counts_as_it_does_in_transformers(tmp_path, kind, values):
    make(kind, tmp_path)
    change_config(tmp_path, **values)
    ours, theirs = opened(tmp_path)
    assert_equal(ours, theirs, [*TEXTS, "a <new> b<one>two <image> c", "<|begin_of_text|>a"])
    assert ours.encode("hi", True) == theirs("hi")["input_ids"]
    ours.save(tmp_path / "again")
    shutil.copy(tmp_path / "config.json", tmp_path / "again")
    assert_equal(*opened(tmp_path / "again"))


def test_added_tokens_are_changed_by_the_config(tmp_path):
    make("mistral", tmp_path)
    decoder = {
        "2": {"content": "</s>", "special": True, "lstrip": True},
        "900": {"content": "<new>", "special": False},
    }
    change_config(tmp_path, added_tokens_decoder=decoder)
    ours, theirs = opened(tmp_path)
    assert_equal(ours, theirs, ["a  </s> b", "a <new> b"])
    assert len(ours.encode("  </s>")) == 1
    assert ours.decode(ours.encode("<new>")) == "<new>"


def test_truncation_and_padding_in_the_file_do_not_apply(tmp_path):
    make("bert", tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert len(ours.encode("how many customers live in seoul", True)) > 6
    assert len(ours.encode("a")) == 1


def test_the_file_goes_before_what_transformers_makes_of_its_class(tmp_path):
    # Some checkpoints that say GPT2Tokenizer were trained with digits apart; the class knows none.
    make("gpt2", tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert [ours.decode([i]) for i in ours.encode("12000")] == list("12000")


@pytest.mark.parametrize("name", ["chatml-49k", "llama-32k"])
def test_published_tokenizers(hone_data, name):
    folder = hone_data / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    ours, theirs = opened(folder)
    assert_equal(ours, theirs, HOSTILE)
    for text in HOSTILE:
        framed = theirs(text, return_offsets_mapping=True)
        ids, spans = ours.encode_with_offsets(text, True)
        surplus = len(framed["input_ids"]) - len(ids)
        assert ids == framed["input_ids"][surplus:]
        assert spans == framed["offset_mapping"][surplus:]
        assert surplus == (name == "llama-32k" and text.startswith("<s>"))
    # transformers raises TypeError on a lone surrogate.
    safe = ours.encode("a?b")
    assert ours.encode("a\ud800b") == safe
    assert ours.encode_batch(["a\udfffb"]) == [safe]
    assert ours.encode_pair("a\ud800b", "", add_special_tokens=False)[0] == safe
    assert ours.encode_with_offsets("a\ud800b")[0] == safe


def test_without_a_config_there_is_one_bos_too(hone_data):
    ours = Tokenizer.load(hone_data / "tokenizers" / "llama-32k")
    assert ours.bos_id is None
    assert ours.encode("<s>hi", True) == ours.encode("<s>hi") == [1, 2918]
    assert ours.encode("hi", True)[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_letter_a_hundred_thousand_times(tmp_path, kind):
    make(kind, tmp_path)
    ours, theirs = opened(tmp_path)

    def seconds(encode):
        started = time.perf_counter()
        return encode("a" * 100_000), time.perf_counter() - started

    found, here = seconds(ours.encode)
    expected, there = seconds(lambda text: theirs(text, add_special_tokens=False)["input_ids"])
    assert found == expected
    assert here < 3 * there + 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{}", "not a tokenizer file"),
        ("tokenizer.json", "{", "not a tokenizer file"),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer file"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{\n,", "line 2: not valid JSON"),
        ("tokenizer_config.json", b"\xff", "not UTF-8"),
        ("tokenizer_config.json", '{"bos_token": 5}', "bos_token is 5; expected a text"),
        ("tokenizer_config.json", '{"eos_token": {"lstrip": true}}', "eos_token is"),
        ("tokenizer_config.json", '{"extra_special_tokens": [1]}', "expected a list of tokens"),
        ("tokenizer_config.json", '{"extra_special_tokens": "<a>"}', "expected a list of tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}', "added_tokens_decoder is"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder is"),
        ("tokenizer_config.json", '{"model_max_length": "5"}', "expected a number of tokens"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template is neither"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template is neither"),
        ("special_tokens_map.json", "5", "special_tokens_map.json is not a JSON object"),
        ("added_tokens.json", '{"<a>": "b"}', "added_tokens_decoder is"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, said):
    make("mistral", tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=said) as caught:
        Tokenizer.load(tmp_path)
    assert file in str(caught.value) or "tokenizer_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.model", "only tokenizer.model .*SentencePiece.*pip install .*sentencepiece"),
        ("vocab.json", "only vocab.json"),
        ("vocab.txt", "only vocab.txt"),
        (None, "nor another tokenizer"),
    ],
)
def test_another_format_comes_with_the_conversion(tmp_path, name, said):
    if name:
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError, match=f"no tokenizer\\.json, {said}"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Tokenizer.load(tmp_path / "absent")


def test_the_conversion_works(tmp_path):
    make("gpt2", tmp_path / "a")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    (tmp_path / "b").mkdir()
    backend.model.save(str(tmp_path / "b"))
    shutil.copy(tmp_path / "a" / "config.json", tmp_path / "b")
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path / "b")
    exec(str(caught.value).split('"')[1])  # the command that the message gives
    again = Tokenizer.load(tmp_path / "b")
    assert again.encode("서울 customers") == Tokenizer.load(tmp_path / "a").encode("서울 customers")
