import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from interop import (
    KINDS,
    REAL,
    ROWS,
    SIZES,
    CausalInterop,
    ClassifierInterop,
    EmbeddingInterop,
    Interop,
    MaskedInterop,
    TokenClassifierInterop,
)
from safetensors.torch import load_file, save_file

from hone.core.errors import CheckpointError
from hone.models import load_model, make_model, read_config, save_checkpoint, write_config

NAMES = {0: "나쁨", 1: "보통", 2: "좋음"}
LABELS = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
ONE, MANY = {"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}
BERT_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
# The window reaches two tokens to each side.
MODERN_SIZES = BERT_SIZES | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}


class TestBertMasked(MaskedInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {
        "tied": {},
        "untied": {
            "tie_word_embeddings": False,
            "hidden_act": "gelu_new",
            "type_vocab_size": 3,
            "layer_norm_eps": 1e-5,
        },
    }


class TestBertClassifier(ClassifierInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"single": LABELS, "several": MANY, "number": ONE}


class TestBertTokenClassifier(TokenClassifierInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"named": LABELS}


class TestBertEmbedding(EmbeddingInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"mean": {}}


class TestBertDecoder(CausalInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"causal": {"is_decoder": True}}


class TestRobertaMasked(MaskedInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {
        "tied": {"type_vocab_size": 1, "max_position_embeddings": 23},
        "untied": {"tie_word_embeddings": False, "hidden_act": "relu"},
    }


class TestRobertaClassifier(ClassifierInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"single": LABELS}


class TestRobertaTokenClassifier(TokenClassifierInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"named": LABELS}


class TestRobertaEmbedding(EmbeddingInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"mean": {}}


class TestModernBertMasked(MaskedInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {
        "tied": {"num_hidden_layers": 4},
        "untied": {"tie_word_embeddings": False, "decoder_bias": False, "local_attention": 5},
        "biased": {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "classifier_activation": "gelu_new",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    }


class TestModernBertClassifier(ClassifierInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {
        "cls": LABELS,
        "mean": {"classifier_pooling": "mean", "classifier_bias": True} | MANY,
    }


class TestModernBertTokenClassifier(TokenClassifierInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {"named": LABELS}


class TestModernBertEmbedding(EmbeddingInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {"mean": {}}


def their_files(family, auto_class, folder, changes=(), weights=lambda tensors: tensors, keys=None):
    """A random checkpoint of theirs whose weights and ``config.json`` are changed afterwards."""
    sizes = {"modernbert": MODERN_SIZES}.get(family, BERT_SIZES)
    tests = type("Tests", (Interop,), {"family": family, "sizes": sizes, "auto_class": auto_class})
    model = tests().make(dict(changes))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(weights(load_file(file)), file, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps((keys or (lambda v: v))(values)))
    return model


def old_bert(tensors):
    """As BERT's first files are: TensorFlow's names, and tied weights once more."""
    tensors["cls.predictions.decoder.weight"] = tensors[
        "bert.embeddings.word_embeddings.weight"
    ].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((n.replace(new, old) for new, old in renamed.items() if n.endswith(new)), n): tensor
        for n, tensor in tensors.items()
    }


def old_keys(values):
    """A ``config.json`` that leaves to the family what newer ones say."""
    for key in ("tie_word_embeddings", "dtype", "is_decoder", "add_cross_attention", "use_cache"):
        values.pop(key, None)
    more = {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
    return values | more | {"architectures": ["BertForMaskedLM"]}


def test_bert_as_it_lies_on_the_hub(tmp_path):
    theirs = their_files(
        "bert", "AutoModelForPreTraining", tmp_path, weights=old_bert, keys=old_keys
    )
    ours = load_model(tmp_path)
    with torch.no_grad():
        expected = theirs(ROWS, attention_mask=REAL, token_type_ids=KINDS).prediction_logits
        found = ours(ROWS, REAL, KINDS).logits
    torch.testing.assert_close(found[REAL.bool()], expected[REAL.bool()], atol=1e-4, rtol=1e-4)
    assert ours.head == "masked"
    assert ours.config.tie_word_embeddings
    # The pooler was trained with next-sentence prediction: a classifier begins with it.
    with pytest.warns(UserWarning, match=r"'classification': score.bias, score.weight are new"):
        classifier = load_model(tmp_path, head="classification")
    assert torch.equal(classifier.transform.dense.weight, theirs.bert.pooler.dense.weight)


def test_a_bias_beside_the_output_layer_or_in_it(tmp_path):
    def moved(tensors):
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        return tensors

    theirs = their_files("bert", "AutoModelForMaskedLM", tmp_path / "bert", weights=moved)
    assert torch.equal(load_model(tmp_path / "bert").lm_head.bias, theirs.cls.predictions.bias)

    def doubled(tensors):
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
        tensors["lm_head.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
        tensors["roberta.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["roberta.pooler.dense.weight"] = torch.ones(40, 40)
        tensors["roberta.pooler.dense.bias"] = torch.ones(40)
        return tensors

    folder = tmp_path / "roberta"
    theirs = their_files("roberta", "AutoModelForMaskedLM", folder, weights=doubled)
    ours = load_model(folder)
    with torch.no_grad():
        found, expected = ours(ROWS, REAL).logits, theirs(ROWS, attention_mask=REAL).logits
    torch.testing.assert_close(found[REAL.bool()], expected[REAL.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "prefixed", "pooler"),
    [("bert", True, True), ("bert", False, False), ("roberta", False, True)],
)
def test_bare_bodies_with_and_without_prefix_and_pooler(family, prefixed, pooler, tmp_path):
    def changed(tensors):
        return {
            f"{family}." * prefixed + name: tensor
            for name, tensor in tensors.items()
            if pooler or "pooler" not in name
        }

    theirs = their_files(family, "AutoModel", tmp_path / "theirs", weights=changed)
    ours = load_model(tmp_path / "theirs")
    assert ours.head == "embedding"
    with torch.no_grad():
        hidden = theirs(ROWS[:1]).last_hidden_state
        torch.testing.assert_close(ours(ROWS[:1]).logits, hidden.mean(1), atol=1e-4, rtol=1e-4)
    save_checkpoint(tmp_path / "ours", ours)
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert ("pooler.dense.weight" in written) == pooler
    if pooler:
        assert torch.equal(written["pooler.dense.weight"], theirs.pooler.dense.weight)
    with pytest.warns(UserWarning, match="are new"):
        classifier = load_model(tmp_path / "theirs", head="classification")
    kept = family == "bert" and pooler
    assert kept == torch.equal(classifier.transform.dense.weight, theirs.pooler.dense.weight)


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("bert", "MaskedLM"),
        ("bert", "SequenceClassification"),
        ("roberta", "TokenClassification"),
        ("modernbert", "MaskedLM"),
    ],
)
def test_a_body_takes_another_head(family, auto_class, tmp_path):
    labels = {"num_labels": 3} if "Classification" in auto_class else {}
    their_files(family, f"AutoModelFor{auto_class}", tmp_path, labels)
    stored = load_model(tmp_path)
    heads = {"masked", "classification", "token-classification"} - {stored.head}
    for head in heads:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = load_model(tmp_path, head=head)
        own = dict(stored.named_parameters())
        assert model.head == head
        new = []
        for name, parameter in model.named_parameters():
            if name.startswith("model."):
                assert torch.equal(parameter, own[name]), name
            elif name not in own or not torch.equal(parameter, own[name]):
                new.append(name)
        text = " ".join(str(warning.message) for warning in caught)
        assert all(name in text for name in new)
        assert len(caught) == bool(new)
        assert model(ROWS, REAL).logits.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder = load_model(tmp_path, head="embedding")
    assert embedder(ROWS, REAL).logits.shape == (3, 40)
    with pytest.raises(CheckpointError, match="'causal' needs a body that sees no token after"):
        load_model(tmp_path, head="causal")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_missing_keys_have_the_defaults_of_transformers(family):
    import transformers

    theirs = transformers.AutoConfig.for_model(family).to_dict()
    again = transformers.AutoConfig.for_model(**write_config(read_config({"model_type": family})))
    for key, value in theirs.items():
        if key not in ("architectures", "dtype"):
            assert again.to_dict()[key] == value, key


@pytest.mark.parametrize(
    "old",
    [
        {"global_attn_every_n_layers": 2, "global_rope_theta": 5e4, "local_rope_theta": 500.0},
        {"local_attention": 7, "position_embedding_type": "absolute", "reference_compile": False},
        {"global_attn_every_n_layers": 1, "hidden_activation": "gelu_new"},
        {"hidden_activation": "gelu_python", "rope_scaling": None, "repad_logits_with_grad": True},
    ],
)
def test_older_files_of_modernbert_are_read_as_they_read_them(old):
    import transformers

    values = MODERN_SIZES | {"model_type": "modernbert"} | old
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(values)).to_dict()
    assert read_config(values) == read_config(theirs)


def test_the_window_counts_tokens_on_both_sides():
    config = read_config(MODERN_SIZES | {"model_type": "modernbert", "num_hidden_layers": 2})
    config = replace(config, sliding_layers=(0, 1))
    model = make_model(config)
    model.initialise(0)
    ids = torch.arange(3, 23)[None]
    changed = ids.clone()
    changed[0, 10] = 60
    with torch.no_grad():
        before, after = (
            model(x, output_hidden_states=True).hidden_states[1:] for x in (ids, changed)
        )
    seen = (before[0] != after[0]).any(-1)[0].nonzero().flatten().tolist()
    assert seen == [8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [
        ("bert", "position_embedding_type", "relative_key", "expected 'absolute'"),
        ("bert", "add_cross_attention", True, "expected false"),
        ("bert", "hidden_act", "mish", "hidden_act is 'mish'; expected one of"),
        ("bert", "num_attention_heads", 7, "no multiple of num_attention_heads 7"),
        ("bert", "is_decoder", "no", "is_decoder is 'no'"),
        ("bert", "problem_type", "ranking", "problem_type is 'ranking'"),
        ("bert", "id2label", {"0": "a", "2": "b"}, "a name for each number from 0"),
        ("bert", "id2label", {}, "a name for each number from 0"),
        ("bert", "id2label", ["a"], "a name for each number from 0"),
        ("bert", "architectures", ["BertForQuestionAnswering"], "expected a name that ends in"),
        ("roberta", "max_position_embeddings", 2, r"more than pad_token_id \+ 1 = 2"),
        ("modernbert", "classifier_pooling", "max", "expected 'cls' or 'mean'"),
        ("modernbert", "layer_types", ["full_attention"], "for each of 22 layers"),
        ("modernbert", "local_attention", "wide", "local_attention is 'wide'"),
        (
            "modernbert",
            "rope_scaling",
            {"type": "linear", "factor": 2.0},
            "rope_parameters with an",
        ),
        ("modernbert", "global_attn_every_n_layers", 0, "global_attn_every_n_layers is 0"),
    ],
)
def test_what_cannot_be_is_said(family, key, value, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config({"model_type": family, key: value}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", ["masked", "classification"])
def test_an_unexpected_weight_is_an_error(head, tmp_path):
    def more(tensors):
        return tensors | {"cls.predictions.extra": torch.ones(2)}

    their_files("bert", "AutoModelForMaskedLM", tmp_path, weights=more)
    with pytest.raises(CheckpointError, match=r"no place for the weight 'cls.predictions.extra'"):
        load_model(tmp_path, head=head)


def test_other_labels_mean_a_new_layer(tmp_path):
    their_files("bert", "AutoModelForSequenceClassification", tmp_path / "theirs", MANY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        renamed = load_model(tmp_path / "theirs", labels=["갑", "을", "병"])
    assert renamed.config.problem == "multi_label"
    assert renamed.config.labels == ("갑", "을", "병")
    with pytest.warns(UserWarning, match="score.bias, score.weight are new"):
        reward = load_model(tmp_path / "theirs", labels=["reward"])
    assert reward(ROWS, REAL).logits.shape == (3, 1)
    assert torch.equal(reward.transform.dense.weight, renamed.transform.dense.weight)
    save_checkpoint(tmp_path / "ours", reward)
    again = load_model(tmp_path / "ours")
    assert again.config.labels == ("reward",)
    assert again.config.problem == "regression"
    assert torch.equal(again.score.weight, reward.score.weight)


def test_files_that_name_no_architecture_may_hold_any_head(tmp_path):
    def silent(values):
        values.pop("architectures")
        return values

    their_files("bert", "AutoModelForTokenClassification", tmp_path / "tokens", keys=silent)
    stored = load_model(tmp_path / "tokens", head="token-classification")
    assert stored.score.weight.std() > 0.1
    their_files("bert", "AutoModel", tmp_path / "body", keys=silent)
    with pytest.warns(UserWarning, match="score.bias, score.weight are new"):
        load_model(tmp_path / "body", head="token-classification")
    with pytest.raises(CheckpointError, match="in none of its files"):
        load_model(tmp_path / "body")
