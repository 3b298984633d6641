"""`hone.pipeline` gives what transformers' pipelines give, for the same checkpoints."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import hone
from hone.core.errors import CheckpointError, RequestError
from hone.engine.pipelines import inputs
from hone.text.tokenizer import Tokenizer

TEXTS = [
    "김민수는 서울에서 태어나 한국은행에서 일한다.",
    "Ada Lovelace was born in London, and never left England.",
    "고객은 모두 몇 명인가요? How many customers live in Seoul?",
    "짧다",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_pieces() -> tokenizers.Tokenizer:
    """Words and ##pieces, as BERT's."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    train(made, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL))
    return made


def byte_pieces() -> tokenizers.Tokenizer:
    """Bytes and pairs of them, as RoBERTa's and GPT-2's."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(
        made,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return made


def train(made: tokenizers.Tokenizer, trainer: Any) -> None:
    made.train_from_iterator(TEXTS * 3, trainer)
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )


READERS = ["bert", "roberta", "modernbert"]
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 64},
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "modernbert": {"max_position_embeddings": 64},
    "t5": {"d_model": 32, "d_ff": 40, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 64,
        "init_std": 0.4,
        "forced_eos_token_id": 3,
        "decoder_start_token_id": 2,
    },
}


def save(folder: Path, family: str, auto: str, backend: tokenizers.Tokenizer, **config: Any) -> str:
    """A small random checkpoint of theirs."""
    import transformers

    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    made = transformers.AutoConfig.for_model(family, **(sizes | config))
    getattr(transformers, auto).from_config(made).save_pretrained(folder)
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (family == "bert")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=names, model_max_length=60, **ROLES
    )
    if "For" in auto and "Causal" in auto:
        fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A checkpoint of a family with a head, made once."""
    folder = tmp_path_factory.mktemp("pipelines")
    found: dict[str, str] = {}

    def checkpoint(family: str, head: str, **config: Any) -> str:
        name = f"{family}-{head}-{len(config)}-{config.get('problem_type')}"
        if name not in found:
            backend = word_pieces() if family == "bert" else byte_pieces()
            options = FAMILIES.get(family, {}) | config
            found[name] = save(folder / name, family, f"AutoModel{head}", backend, **options)
        return found[name]

    return checkpoint


def theirs(task: str, path: str, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(task, model=path, device="cpu", dtype="float32", **options)


def same(ours: Any, expected: Any) -> None:
    """Assert the same structure, order, keys and texts, and numbers to float32's precision."""
    if isinstance(expected, dict):
        assert list(ours) == list(expected)
        for key, value in expected.items():
            same(ours[key], value)
    elif isinstance(expected, list):
        assert isinstance(ours, list)
        assert len(ours) == len(expected)
        for mine, value in zip(ours, expected, strict=True):
            same(mine, value)
    elif isinstance(expected, str | int):
        assert ours == expected
        assert type(ours) is type(expected)
    else:
        # Theirs are NumPy's scalars in places, which JSON refuses.
        assert type(ours) is float
        assert math.isclose(ours, float(expected), rel_tol=1e-3, abs_tol=2e-5)


def check(task: str, path: str, calls: list[tuple[Any, dict[str, Any]]], **options: Any) -> None:
    ours, other = hone.pipeline(task, path, **options), theirs(task, path, **options)
    for given_inputs, call in calls:
        same(ours(given_inputs, **call), other(given_inputs, **call))


@pytest.mark.filterwarnings("ignore:The vocabulary has no")
@pytest.mark.parametrize("family", [*READERS, "bart"])
def test_fill_mask(make, family):
    one, two = "서울에서 [MASK] 일한다.", "[MASK] was born in [MASK]"
    targets = ["서울", "London", "born", "in"]
    check(
        "fill-mask",
        make(family, "ForMaskedLM"),
        [
            (one, {}),
            ([one], {}),
            ([one, two, one], {"top_k": 3}),
            (two, {"top_k": 2}),
            (one, {"targets": [w for w in targets if family != "bert" or w != "London"]}),
            (one, {"targets": "in", "top_k": 9}),
            (one + " 서울" * 90, {"tokenizer_kwargs": {"truncation": True}}),
        ],
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_text_classification(make, family):
    path = make(family, "ForSequenceClassification", num_labels=3)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    check(
        "text-classification",
        path,
        [
            (TEXTS[0], {}),
            (TEXTS, {}),
            (TEXTS[:1], {"batch_size": 2}),
            (TEXTS[0], {"top_k": None}),
            (TEXTS, {"top_k": 2}),
            (TEXTS[0], {"function_to_apply": "sigmoid", "top_k": 3}),
            (TEXTS, {"function_to_apply": "none"}),
            (pair, {}),
            ([pair, pair], {"top_k": None}),
            (TEXTS[0] * 20, {"truncation": True}),
            (TEXTS[0] * 20, {"truncation": True, "max_length": 11}),
            (pair, {"truncation": True, "max_length": 15}),
            ({"text": TEXTS[3], "text_pair": TEXTS[1]}, {"truncation": True, "max_length": 12}),
            ({"text": TEXTS[1], "text_pair": TEXTS[3]}, {"truncation": True, "max_length": 12}),
        ],
    )
    check("sentiment-analysis", path, [(TEXTS[0], {}), (TEXTS, {})], top_k=2)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(3, "multi_label_classification"), (1, None), (1, "regression"), (3, "regression")],
)
def test_scores_fit_the_problem(make, labels, problem):
    path = make("bert", "ForSequenceClassification", num_labels=labels, problem_type=problem)
    check("text-classification", path, [(TEXTS[0], {}), (TEXTS, {"top_k": None})])


STRATEGIES = ["none", "simple", "first", "average", "max"]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("family", READERS)
def test_token_classification(make, family):
    labels = dict(enumerate(LABELS))
    path = make(family, "ForTokenClassification", id2label=labels)
    words = ["Ada", "Lovelace", "서울에서", "☃", "born"]
    calls: list[tuple[Any, dict[str, Any]]] = [(TEXTS[1] + " ☃!", {}), (TEXTS, {})]
    for strategy in STRATEGIES:
        calls.append((TEXTS, {"aggregation_strategy": strategy, "ignore_labels": ["I-LOC"]}))
        calls.append((TEXTS[2] + " ☃!", {"aggregation_strategy": strategy, "ignore_labels": []}))
    calls += [
        (words, {"is_split_into_words": True}),
        ([words, words[:2]], {"is_split_into_words": True, "aggregation_strategy": "first"}),
        (TEXTS[1] * 6, {"aggregation_strategy": "simple", "stride": 7}),
        ([TEXTS[1] * 6, TEXTS[0]], {"aggregation_strategy": "average", "stride": 0}),
    ]
    check("ner", path, calls)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_feature_extraction(make, family):
    path = make(family, "")
    ours, other = hone.pipeline("feature-extraction", path), theirs("feature-extraction", path)
    same(ours(TEXTS[0]), other(TEXTS[0]))
    same(ours(TEXTS), other(TEXTS))
    same(ours(TEXTS[0] * 20, truncation=True), other(TEXTS[0] * 20, truncation=True))
    kwargs = {"tokenize_kwargs": {"truncation": True, "max_length": 9}}
    same(ours(TEXTS[0], **kwargs), other(TEXTS[0], **kwargs))
    found, expected = ours(TEXTS[1], return_tensors=True), other(TEXTS[1], return_tensors=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_generation(make, family):
    path = make(family, "ForCausalLM", max_position_embeddings=256, n_embd=32, n_layer=2, n_head=4)
    greedy = {"do_sample": False, "max_new_tokens": 4}
    chat = [{"role": "user", "content": "고객은 몇 명?"}]
    prefilled = [*chat, {"role": "assistant", "content": "모두 "}]
    check(
        "text-generation",
        path,
        [
            (TEXTS[0], greedy),
            (TEXTS, greedy),
            (TEXTS[:1], greedy | {"batch_size": 4}),
            (TEXTS[1], greedy | {"return_full_text": False}),
            (TEXTS[1], greedy | {"return_tensors": True}),
            (TEXTS[1], greedy | {"skip_special_tokens": False}),
            (TEXTS[1], greedy | {"prefix": "고객 ", "add_special_tokens": False}),
            (TEXTS[1], {"do_sample": False, "max_length": 45}),
            (TEXTS[1], {"do_sample": True, "top_k": 1, "max_new_tokens": 5}),
            (TEXTS[1], {"do_sample": True, "top_p": 1e-4, "temperature": 0.9, "max_new_tokens": 4}),
            (TEXTS[1], greedy | {"repetition_penalty": 1.7}),
            (TEXTS[0], greedy | {"max_new_tokens": 40, "handle_long_generation": "hole"}),
            (chat, greedy),
            ([chat, chat * 3], greedy),
            (chat, greedy | {"return_full_text": False}),
            (prefilled, greedy),
            (prefilled, greedy | {"continue_final_message": False}),
        ],
    )


def test_samples_of_a_text(make):
    path = make("llama", "ForCausalLM", max_position_embeddings=256, n_embd=32, n_layer=2, n_head=4)
    generator = hone.pipeline("text-generation", path, max_new_tokens=6, num_return_sequences=3)
    plain = hone.pipeline("text-generation", path)
    torch.manual_seed(1)
    found = generator(TEXTS[:2])
    torch.manual_seed(1)
    assert generator(TEXTS[:2]) == found
    assert [len(several) for several in found] == [3, 3]
    assert len({each["generated_text"] for each in found[0]}) == 3
    assert generator(TEXTS[0], seed=4) == generator(TEXTS[0], seed=4)
    with pytest.raises(RequestError, match="without do_sample=True all would be the same"):
        generator(TEXTS[0], do_sample=False)
    for options, message in (
        ({"num_beams": 4}, "num_beams is 4; hone takes"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_length": "9"}, "max_length is '9'"),
        ({"max_length": 9, "max_new_tokens": None}, "the prompt has .* tokens already"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"return_tensors": True, "return_text": True}, "leave out the other"),
        ({"handle_long_generation": "cut"}, "handle_long_generation is 'cut'"),
    ):
        with pytest.raises(RequestError, match=message):
            plain(TEXTS[0], **options)
    with pytest.raises(RequestError, match="no text to continue"):
        plain([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}])


def test_the_checkpoint_says_how_it_is_sampled(make):
    path = make("llama", "ForCausalLM", max_position_embeddings=200)
    said = {"do_sample": False, "max_new_tokens": 5}
    (Path(path) / "generation_config.json").write_text(json.dumps(said))
    check("text-generation", path, [(TEXTS[0], {}), (TEXTS[0], {"max_new_tokens": 3})])


def test_continuations_keep_the_space_between_words(make, tmp_path):
    """transformers 5 decodes the new tokens alone, and so loses the space before the first."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    train(backend, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL))
    path = save(tmp_path, "llama", "AutoModelForCausalLM", backend)
    generator = hone.pipeline("text-generation", path, do_sample=False, max_new_tokens=6)
    (found,) = generator(TEXTS[1])
    new = generator.lm.generate(TEXTS[1], hone.SamplingParams(max_tokens=6))[0].text
    assert found["generated_text"] == TEXTS[1] + new
    assert [{"generated_text": new}] == generator(TEXTS[1], return_full_text=False)


TASKS = {
    "summarization": {"prefix": "summarize: ", "max_length": 9, "num_beams": 4, "min_length": 4},
    "translation_en_to_ko": {"prefix": "translate English to Korean: ", "max_length": 7},
}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_text_to_text(make, family):
    import transformers

    path = make(family, "ForSeq2SeqLM", decoder_start_token_id=2, task_specific_params=TASKS)
    (Path(path) / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0})
    )
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def expected(text: str, **options: Any) -> str:
        read = tokenizer(text, return_tensors="pt")
        read.pop("token_type_ids", None)
        ids = model.generate(**read, do_sample=False, num_beams=1, **options)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    with pytest.warns(UserWarning, match="num_beams = 4"):
        summarizer = hone.pipeline("summarization", path)
    prefixed = [expected("summarize: " + t, max_length=9, min_length=4) for t in TEXTS[:2]]
    assert summarizer(TEXTS[0]) == [{"summary_text": prefixed[0]}]
    assert summarizer(TEXTS[:2]) == [{"summary_text": text} for text in prefixed]

    prefix = TASKS["translation_en_to_ko"]["prefix"]
    wanted = [{"translation_text": expected(prefix + TEXTS[1], max_length=7)}]
    assert hone.pipeline("translation_en_to_ko", path)(TEXTS[1]) == wanted
    translator = hone.pipeline("translation", path, src_lang="en", tgt_lang="ko")
    assert translator(TEXTS[1]) == wanted
    with pytest.raises(RequestError, match='Did you mean "translation_en_to_ko"'):
        hone.pipeline("translation_en_to_de", path)

    answerer = hone.pipeline(None, path, max_new_tokens=5)
    assert answerer.task == "text2text-generation"
    assert answerer([TEXTS[1]]) == [{"generated_text": expected(TEXTS[1], max_new_tokens=5)}]
    found = answerer(TEXTS[:2], do_sample=True, num_return_sequences=2)
    assert [len(several) for several in found] == [2, 2]
    ids = answerer(TEXTS[1], return_tensors=True)[0]["generated_token_ids"]
    assert answerer.tokenizer.decode(ids) == expected(TEXTS[1], max_new_tokens=5)


def test_sentence_embedding(make, tmp_path):
    path = make("bert", "")
    states = hone.pipeline("feature-extraction", path)(TEXTS, return_tensors=True)
    embed = hone.pipeline("sentence-embedding", path)
    same(embed(TEXTS), [state[0].mean(0).tolist() for state in states])
    same(embed(TEXTS[0]), states[0][0].mean(0).tolist())
    first = hone.pipeline("embeddings", path, pooling="cls", normalize=True)
    unit = torch.nn.functional.normalize(states[1][0, 0], dim=-1)
    torch.testing.assert_close(first(TEXTS[1], return_tensors=True), unit, atol=1e-5, rtol=1e-5)
    with pytest.raises(RequestError, match=r"pooling is 'men'. Did you mean \"mean\"\?"):
        hone.pipeline("sentence-embedding", path, pooling="men")


@pytest.mark.parametrize(
    ("family", "head", "task"),
    [
        ("bert", "ForMaskedLM", "fill-mask"),
        ("bert", "", "feature-extraction"),
        ("roberta", "ForTokenClassification", "token-classification"),
        ("roberta", "ForSequenceClassification", "text-classification"),
        ("gpt2", "ForCausalLM", "text-generation"),
    ],
)
def test_a_checkpoint_names_its_task(make, family, head, task):
    assert hone.pipeline(model=make(family, head), device=-1).task == task


def test_any_iterable_gives_an_iterator(make):
    classify = hone.pipeline("text-classification", make("bert", "ForSequenceClassification"))
    drawn = []

    def texts():
        for text in TEXTS:
            drawn.append(text)
            yield text

    results = classify(texts(), batch_size=2)
    assert not drawn
    same(next(results), classify([TEXTS[0]])[0])
    assert len(drawn) == 2
    same([*results], classify(TEXTS)[1:])
    assert classify([]) == []


def test_batches_change_nothing(make):
    tag = hone.pipeline("ner", make("roberta", "ForTokenClassification"), ignore_labels=[])
    alone = [tag(text) for text in TEXTS]
    for size in (1, 2, 3, None):
        same(tag(TEXTS, batch_size=size), alone)


def test_what_cannot_be_is_said(make):
    path = make("bert", "ForMaskedLM")
    with pytest.raises(RequestError, match=r'no task "fill-masks". Did you mean "fill-mask"\?'):
        hone.pipeline("fill-masks", path)
    with pytest.raises(RequestError, match="There is no model"):
        hone.pipeline("fill-mask")
    with pytest.raises(RequestError, match=r'no option "topk". Did you mean "top_k"\?'):
        hone.pipeline("fill-mask", path, topk=2)
    with pytest.raises(CheckpointError, match="holds an encoder"):
        hone.pipeline("text-generation", path)
    fill = hone.pipeline("fill-mask", path)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ("서울", {}, r"Text 1 has no \[MASK\]"),
        (["[MASK]", 3], {}, "Input 2 is 3; give a text"),
        (7, {}, "The input is 7; give a text"),
        ("[MASK]" * 80, {}, r"82 tokens; this model reads 64. Shorten .* truncation=True"),
        ("[MASK]", {"top_k": 0}, "top_k is 0"),
        ("[MASK]", {"batch_size": 0}, "batch_size is 0"),
        ("[MASK]", {"targets": []}, "at least one"),
        ("[MASK]", {"tokenizer_kwargs": {"truncate": True}}, 'no "truncate"'),
        ("[MASK]" * 9, {"tokenizer_kwargs": {"max_length": 2}}, "max_length is 2, and 2 of"),
    ]
    for text, options, message in refused:
        with pytest.raises(RequestError, match=message):
            fill(text, **options)
    fill.tokenizer.mask_id = None
    with pytest.raises(CheckpointError, match="has no mask token"):
        fill("[MASK]")


def test_wrong_options_of_classes_are_said(make):
    classify = hone.pipeline("text-classification", make("bert", "ForSequenceClassification"))
    for item, options, message in (
        ("서울", {"function_to_apply": "sigmod"}, 'Did you mean "sigmoid"'),
        ({"text": "서울", "pair": "x"}, {}, "for two"),
        ([["서울", "x"]], {}, "for two"),
        ("서울", {"truncation": "only_first"}, "truncation is 'only_first'"),
    ):
        with pytest.raises(RequestError, match=message):
            classify(item, **options)
    tag = hone.pipeline("ner", make("roberta", "ForTokenClassification"))
    for options, message in (
        ({"aggregation_strategy": "averge"}, 'Did you mean "average"'),
        ({"stride": 3}, "stride needs an aggregation_strategy"),
        ({"stride": 58, "aggregation_strategy": "simple"}, "from 0 to 57"),
    ):
        with pytest.raises(RequestError, match=message):
            tag(TEXTS[1] * 20, **options)
    with pytest.raises(RequestError, match=r"Input 2 is \['a', 3\]; give a list of words"):
        tag([["a"], ["a", 3]], is_split_into_words=True)


WORDS = Tokenizer(word_pieces(), ROLES)


@settings(max_examples=40)
@given(
    st.text("김 서울bori", max_size=30),
    st.none() | st.text("서울lon ", max_size=30),
    st.integers(4, 30),
    st.booleans(),
)
def test_texts_are_cut_as_tokenizers_cut_them(first, second, length, left):
    whole = inputs.encode(WORDS, [first if second is None else (first, second)])[0]
    found = inputs.cut(whole, length, left)
    backend = word_pieces_again()
    backend.enable_truncation(length, direction="left" if left else "right")
    expected = backend.encode(first, second)
    assert found.ids == expected.ids
    assert found.kinds == expected.type_ids
    assert found.spans == expected.offsets


@settings(max_examples=40)
@given(st.text("김 서울bori", max_size=40), st.integers(4, 12), st.integers(0, 1))
def test_windows_are_those_of_tokenizers(text, length, overlap):
    found = inputs.windows(inputs.encode(WORDS, [text])[0], length, overlap)
    backend = word_pieces_again()
    backend.enable_truncation(length, stride=overlap)
    expected = backend.encode(text)
    assert [piece.ids for piece in found] == [e.ids for e in [expected, *expected.overflowing]]


def word_pieces_again() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(WORDS.backend.to_str())


@settings(max_examples=40)
@given(st.text(max_size=12))
def test_ids_are_those_of_the_tokenizer(text):
    found = inputs.encode(WORDS, [text])[0]
    assert (found.ids, found.spans) == WORDS.encode_with_offsets(text, True)
