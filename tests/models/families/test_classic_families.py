"""The first decoders: GPT-2, GPT-NeoX and BLOOM."""

import json
import shutil

import pytest
import torch
from interop import (
    IDS,
    MASK,
    CausalInterop,
    ClassifierInterop,
    Interop,
    TokenClassifierInterop,
    call,
)
from safetensors.torch import load_file, save_file

from hone.core.errors import CheckpointError, RequestError
from hone.engine.cache import RowCache
from hone.models import load_model, make_model, read_config, save_checkpoint, write_config

GPT2 = {
    "vocab_size": 61,
    "n_positions": 64,
    "n_embd": 40,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NEOX = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BLOOM = {
    "vocab_size": 61,
    "hidden_size": 40,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class LastTokenScores(ClassifierInterop):
    """Decoders classify a text by its last token, wherever padding stands."""

    cases = {"three": {"num_labels": 3}}

    def test_padding_on_the_left(self, pair):
        theirs, ours, _ = pair
        with torch.no_grad():
            self.close(ours(IDS, MASK).logits, call(theirs, IDS, MASK).logits)
        assert ours.score.bias is None


class TestGpt2(CausalInterop):
    family = "gpt2"
    sizes = GPT2
    cases = {
        "tied": {},
        "scaled-by-layer": {"scale_attn_by_inverse_layer_idx": True, "n_embd": 42, "n_head": 6},
        "untied-unscaled": {
            "tie_word_embeddings": False,
            "scale_attn_weights": False,
            "activation_function": "relu",
            "n_inner": 52,
            "n_head": 8,
        },
    }


class TestGptNeox(CausalInterop):
    family = "gpt_neox"
    sizes = NEOX
    cases = {
        "parallel": {},
        "in-turn": {
            "use_parallel_residual": False,
            "hidden_act": "gelu_fast",
            "hidden_size": 48,
            "rope_parameters": {"partial_rotary_factor": 1.0},
        },
        "tied-unbiased": {
            "tie_word_embeddings": True,
            "attention_bias": False,
            "rope_parameters": {"partial_rotary_factor": 0.6},
        },
    }


class TestBloom(CausalInterop):
    family = "bloom"
    sizes = BLOOM
    cases = {
        "tied": {},
        "untied": {"tie_word_embeddings": False, "hidden_size": 42, "n_head": 6},
    }


class TestGpt2Classifier(LastTokenScores):
    family = "gpt2"
    sizes = GPT2
    cases = {
        "three": {"num_labels": 3},
        "reward": {"num_labels": 1},
        "many": {
            "id2label": {0: "가", 1: "나"},
            "label2id": {"가": 0, "나": 1},
            "problem_type": "multi_label_classification",
        },
    }


class TestGpt2TokenClassifier(TokenClassifierInterop):
    family = "gpt2"
    sizes = GPT2
    cases = {"five": {"num_labels": 5}}


class TestGptNeoxClassifier(LastTokenScores):
    family = "gpt_neox"
    sizes = NEOX


class TestGptNeoxTokenClassifier(TokenClassifierInterop):
    family = "gpt_neox"
    sizes = NEOX
    cases = {"five": {"num_labels": 5}}


class TestBloomClassifier(LastTokenScores):
    family = "bloom"
    sizes = BLOOM


class TestBloomTokenClassifier(TokenClassifierInterop):
    family = "bloom"
    sizes = BLOOM
    cases = {"five": {"num_labels": 5}}


class Bodies(Interop):
    """Files of a body without a head, whose weights lack the prefix of the whole model's."""

    auto_class = "AutoModel"
    cases = {"bare": {}}

    def test_hidden_states(self, pair):
        theirs, ours, folder = pair
        causal = load_model(folder, head="causal") if ours.config.tie_word_embeddings else None
        with torch.no_grad():
            expected = call(theirs, IDS, MASK).last_hidden_state
            assert ours.head == "embedding"
            self.close(ours(IDS, MASK).logits, expected[:, -1])
            if causal is not None:
                real = MASK.bool()
                scores = expected[real] @ theirs.get_input_embeddings().weight.T
                self.close(causal(IDS, MASK).logits[real], scores)


class TestGpt2Body(Bodies):
    family = "gpt2"
    sizes = GPT2


class TestGptNeoxBody(Bodies):
    family = "gpt_neox"
    sizes = NEOX

    def test_a_new_output_layer_is_named(self, pair):
        with pytest.warns(UserWarning, match=r"lm_head\.weight are new"):
            load_model(pair[2], head="causal")


class TestBloomBody(Bodies):
    family = "bloom"
    sizes = BLOOM


# What hub files of these families hold, beside what is written today.
OLD_KEYS = {
    "gpt2": (
        {"n_ctx": 64, "n_special": 0, "task_specific_params": {"text-generation": {}}},
        ("tie_word_embeddings", "n_inner", "add_cross_attention", "scale_attn_weights", "dtype"),
    ),
    "gpt_neox": (
        {"rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float16"},
        ("rope_parameters", "attention_bias", "tie_word_embeddings", "dtype"),
    ),
    "bloom": (
        {
            "n_embed": 40,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "n_inner": None,
            "seq_length": 2048,
            "skip_bias_add": True,
            "offset_alibi": 100,
        },
        ("hidden_size", "n_head", "n_layer", "tie_word_embeddings", "dtype"),
    ),
}
MASKS = {
    "gpt2": {
        "h.{}.attn.bias": torch.ones(1, 1, 64, 64).bool(),
        "h.{}.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.{}.attention.bias": torch.ones(1, 1, 64, 64).byte(),
        "gpt_neox.layers.{}.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": torch.ones(1),
    },
    "bloom": {},
}


@pytest.mark.parametrize(
    ("tests", "prefix"),
    [(TestGpt2, "transformer."), (TestGptNeox, ""), (TestBloom, "transformer.")],
)
def test_files_as_older_releases_wrote_them(tests, prefix, tmp_path):
    import transformers

    tests().make({}).save_pretrained(tmp_path / "new")
    expected = load_model(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    values, (more, fewer) = json.loads(file.read_text()), OLD_KEYS[tests.family]
    file.write_text(json.dumps({k: v for k, v in (values | more).items() if k not in fewer}))
    file = tmp_path / "old" / "model.safetensors"
    weights = {name.removeprefix(prefix): value for name, value in load_file(file).items()}
    for layer in range(2):
        weights |= {n.format(layer): m.clone() for n, m in MASKS[tests.family].items()}
    save_file(weights, file)
    found = load_model(tmp_path / "old", dtype="float32")
    assert (tests.family == "gpt_neox") == (found.config.dtype == "float16")
    with torch.no_grad():
        assert torch.equal(found(IDS, MASK).logits, expected(IDS, MASK).logits)
    save_checkpoint(tmp_path / "ours", found)
    read, again = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict()
        for name in ("old", "ours")
    )
    changed = {key for key, value in read.items() if again[key] != value}
    assert changed <= {"_name_or_path", "dtype"}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bloom"])
def test_missing_keys_have_the_defaults_of_transformers(family):
    import transformers

    theirs = transformers.AutoConfig.for_model(family)
    ours = write_config(read_config({"model_type": family}))
    again = transformers.AutoConfig.for_model(**ours)
    for key, value in theirs.to_dict().items():
        if key not in ("architectures", "dtype"):
            assert again.to_dict()[key] == value, key


@pytest.mark.parametrize("tests", [TestGpt2, TestGptNeox, TestBloom])
def test_another_head_is_new_and_named(tests, tmp_path):
    tests().make({"num_labels": 3}).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"'classification': score\.weight are new") as caught:
        model = load_model(tmp_path, head="classification")
    assert len(caught) == 1
    assert model(IDS, MASK).logits.shape == (3, 3)
    causal = load_model(tmp_path)
    for name, weight in causal.model.named_parameters():
        assert torch.equal(weight, model.model.get_parameter(name)), name
    assert 0 < model.score.weight.std() < 0.1


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [
        ("gpt2", "add_cross_attention", True, "expected false"),
        ("gpt2", "activation_function", "swiglu", "expected one of silu"),
        ("gpt2", "n_head", "12", "expected a whole number"),
        ("gpt2", "n_head", 7, "no multiple of num_attention_heads 7"),
        ("gpt_neox", "rotary_pct", 1.5, "at most 1"),
        ("gpt_neox", "use_parallel_residual", "no", "expected true or false"),
        ("bloom", "apply_residual_connection_post_layernorm", True, "expected false"),
        ("bloom", "n_layer", 0, "n_layer is 0"),
    ],
)
def test_what_cannot_be_is_said(family, key, value, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config({"model_type": family, key: value}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")


def test_a_text_beyond_the_learned_positions_is_refused():
    config = read_config({"model_type": "gpt2"} | GPT2 | {"n_positions": 5})
    model = make_model(config)
    model.initialise(0)
    with pytest.raises(RequestError, match="has 6 tokens and the model knows 5 positions"):
        model(IDS, MASK)
    cache = RowCache(config, 1, torch.float32)
    whole = model(IDS[:1, :5]).logits
    torch.testing.assert_close(model(IDS[:1, :5], None, cache).logits, whole)
    with pytest.raises(RequestError, match="6 tokens"):
        model(IDS[:1, 5:], None, cache)
