"""Encoder-decoders: T5 and BART."""

import json
from dataclasses import replace

import pytest
import torch
from interop import REAL, ROWS, ClassifierInterop, Interop, Seq2SeqInterop
from safetensors.torch import load_file, save_file

from hone.core.errors import CheckpointError, RequestError
from hone.models import load_model, make_model, read_config, save_checkpoint, write_config
from hone.models.checkpoint import WEIGHTS

T5_SIZES = {
    "vocab_size": 61,
    "d_model": 40,
    "d_kv": 6,
    "d_ff": 56,
    "num_layers": 3,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BART_SIZES = {
    "vocab_size": 61,
    "d_model": 40,
    "encoder_layers": 3,
    "encoder_ffn_dim": 56,
    "encoder_attention_heads": 5,
    "decoder_layers": 2,
    "decoder_ffn_dim": 44,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}


class TestT5(Seq2SeqInterop):
    family = "t5"
    sizes = T5_SIZES
    cases = {
        "original": {},
        "unscaled": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        "uneven": {"num_decoder_layers": 2, "feed_forward_proj": "gelu", "d_kv": 8},
        "named": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"},
        "exact": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"},
        "denied": {"dense_act_fn": "tanh", "is_gated_act": True},
    }


class TestBart(Seq2SeqInterop):
    family = "bart"
    sizes = BART_SIZES
    relative = False
    cases = {
        "tied": {},
        "uneven": {"decoder_layers": 1, "activation_function": "relu"},
        "scaled": {"scale_embedding": True, "encoder_layers": 1, "forced_eos_token_id": None},
    }


class JudgeInterop(ClassifierInterop):
    """A text is judged by what the decoder makes of its last end token, having read it all."""

    # Each row ends where it should; ROWS has no such token.
    ENDED = ROWS.masked_fill(REAL.cumsum(1) == REAL.sum(1, keepdim=True), 2) * REAL

    def inputs(self, theirs):
        return {"input_ids": self.ENDED, "attention_mask": REAL}

    def test_outputs_and_hidden_states(self, pair):
        theirs, ours, _ = pair
        inputs = self.inputs(theirs)
        with torch.no_grad():
            expected = theirs(**inputs, output_hidden_states=True)
            found = ours(**inputs, output_hidden_states=True)
        self.close(found.logits, expected.logits)
        every = (expected.decoder_hidden_states, found.hidden_states)
        for original, mine in zip(*every, strict=True):
            self.close(mine[REAL.bool()], original[REAL.bool()])

    def test_the_last_end_token_counts(self, pair):
        theirs, ours, _ = pair
        ids = torch.tensor([[5, 2, 9, 2, 7], [2, 8, 2, 9, 9]])
        with torch.no_grad():
            self.close(ours(ids).logits, theirs(ids).logits)
            left = torch.tensor([[0, 0, 5, 9, 2]])
            self.close(ours(left, (left != 0).long()).logits, ours(left[:, 2:]).logits)
        with pytest.raises(RequestError, match="Row 2 of the batch has no end-of-sequence token"):
            ours(torch.tensor([[5, 2], [6, 7]]))


LABELS = {"id2label": {0: "나쁨", 1: "좋음"}, "label2id": {"나쁨": 0, "좋음": 1}}
MANY = {"num_labels": 3, "problem_type": "multi_label_classification"}


class TestT5Judge(JudgeInterop):
    family, sizes = "t5", T5_SIZES
    cases = {"single": LABELS, "several": MANY, "number": {"num_labels": 1}}


class TestBartJudge(JudgeInterop):
    family, sizes = "bart", BART_SIZES
    cases = {"single": LABELS, "several": MANY, "number": {"num_labels": 1}}

    def test_three_labels_are_usual(self):
        assert len(read_config({"model_type": "bart"}).labels) == 3
        assert len(read_config({"model_type": "t5"}).labels) == 2


class BodyInterop(Interop):
    """Files of a pair of stacks without a head."""

    auto_class = "AutoModel"
    cases = {"bare": {}}

    def test_a_head_may_be_added(self, pair, recwarn):
        theirs, body, folder = pair
        assert body.head == "embedding"
        # The output layer is the embedding; only a bias or a head of classes can be new.
        ours = load_model(folder, head="seq2seq")
        starts = torch.tensor([[2, 8, 9], [2, 5, 7], [2, 3, 4]])
        with torch.no_grad():
            hidden = theirs(ROWS, REAL, decoder_input_ids=starts).last_hidden_state
            scores = hidden @ theirs.shared.weight.T * ours.config.logit_scale
            self.close(ours(ROWS, REAL, starts).logits, scores)
            shifted = torch.cat((torch.full_like(ROWS[:1, :1], 2), ROWS[:1, :-1]), 1)
            body.config = replace(body.config, decoder_start_token_id=2)
            expected = theirs(ROWS[:1], decoder_input_ids=shifted).last_hidden_state[:, -1]
            self.close(body(ROWS[:1]).logits, expected)
        assert {str(w.message).split(": ")[1] for w in recwarn if "new" in str(w.message)} <= {
            "lm_head.bias are new and must be trained."
        }


class TestT5Body(BodyInterop):
    family, sizes = "t5", T5_SIZES


class TestBartBody(BodyInterop):
    family, sizes = "bart", BART_SIZES


def saved(tests, folder, changes=None):
    """A model of theirs, and the content of its files."""
    model = tests().make(changes or {})
    model.save_pretrained(folder)
    return (
        model,
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )


def rewrite(folder, values, weights):
    (folder / "config.json").write_text(json.dumps(values))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / WEIGHTS)


def compare(folder, theirs=None):
    """Assert that both sides compute the same from ``folder``."""
    if theirs is None:
        from transformers import AutoModelForSeq2SeqLM

        theirs = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="float32").eval()
    ours = load_model(folder, dtype="float32")
    starts = torch.tensor([[2, 8, 9], [2, 5, 7], [2, 3, 4]])
    with torch.no_grad():
        expected = theirs(ROWS, REAL, starts).logits
        torch.testing.assert_close(ours(ROWS, REAL, starts).logits, expected, atol=1e-4, rtol=1e-4)
    return ours


OLD_KEYS = {
    "t5": (
        {
            "n_positions": 512,
            "output_past": True,
            "task_specific_params": {"summarization": {"prefix": "summarize: "}},
            "torch_dtype": "float32",
        },
        (
            "num_decoder_layers",
            "feed_forward_proj",
            "dense_act_fn",
            "is_gated_act",
            "relative_attention_max_distance",
            "scale_decoder_outputs",
            "tie_word_embeddings",
            "dtype",
        ),
        {"relative_attention_max_distance": 128},
    ),
    "bart": (
        {
            "num_hidden_layers": 3,
            "normalize_before": False,
            "normalize_embedding": True,
            "add_final_layer_norm": False,
            "add_bias_logits": False,
            "extra_pos_embeddings": 2,
            "static_position_embeddings": False,
        },
        ("tie_word_embeddings", "dtype", "forced_eos_token_id"),
        {},
    ),
}


@pytest.mark.parametrize("tests", [TestT5, TestBart])
def test_files_as_older_releases_wrote_them(tests, tmp_path):
    more, fewer, changes = OLD_KEYS[tests.family]
    theirs, values, weights = saved(tests, tmp_path, changes)
    values = {key: value for key, value in (values | more).items() if key not in fewer}
    t5 = tests.family == "t5"
    prefix = "" if t5 else "model."
    shared = weights[f"{prefix}shared.weight"]
    weights |= {f"{prefix}{name}.embed_tokens.weight": shared for name in ("encoder", "decoder")}
    weights["lm_head.weight"] = shared
    if t5:
        junk = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        weights[junk] = torch.ones(8, 5)
    else:
        weights |= {f"model.{name}.version": torch.tensor([3.0]) for name in ("encoder", "decoder")}
    rewrite(tmp_path, values, weights)
    compare(tmp_path, theirs)


@pytest.mark.parametrize("tests", [TestT5, TestBart])
@pytest.mark.parametrize("held", ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"])
def test_the_embedding_may_be_held_under_any_of_its_names(tests, held, tmp_path):
    theirs, values, weights = saved(tests, tmp_path)
    prefix = "" if tests.family == "t5" else "model."
    name = held if held == "lm_head" else prefix + held
    weights[f"{name}.weight"] = weights.pop(f"{prefix}shared.weight")
    rewrite(tmp_path, values, weights)
    compare(tmp_path, theirs)
    del weights[f"{name}.weight"]
    rewrite(tmp_path, values, weights)
    with pytest.raises(CheckpointError, match=r"shared\.weight' is in none of its files"):
        load_model(tmp_path)


@pytest.mark.parametrize("tests", [TestT5, TestBart])
def test_an_output_layer_of_its_own_is_used_whatever_the_config_says(tests, tmp_path):
    folder, other = tmp_path / "theirs", tmp_path / "ours"
    _, values, weights = saved(tests, folder)
    weights["lm_head.weight"] = torch.randn(61, 40)
    rewrite(folder, values, weights)
    with pytest.warns(UserWarning, match="files hold different weights for the two"):
        ours = compare(folder)
    assert not ours.config.tie_word_embeddings
    save_checkpoint(other, ours)
    assert torch.equal(load_file(other / WEIGHTS)["lm_head.weight"], weights["lm_head.weight"])
    if tests.family == "t5":
        compare(other)  # what we write says it
    else:
        with pytest.warns(UserWarning, match="files hold different weights"):
            compare(other)


def test_t5_of_version_1_1(tmp_path):
    """Its files deny the tie; what the current release makes of them says something else."""
    from transformers import T5ForConditionalGeneration

    old, new = tmp_path / "old", tmp_path / "new"
    _, values, weights = saved(TestT5, old, {"feed_forward_proj": "gated-gelu"})
    weights["lm_head.weight"] = torch.randn(61, 40)
    del values["scale_decoder_outputs"]
    rewrite(old, values | {"tie_word_embeddings": False}, weights)
    ours = compare(old)
    assert (ours.config.tie_word_embeddings, ours.config.logit_scale) == (False, 1.0)
    T5ForConditionalGeneration.from_pretrained(old).save_pretrained(new)
    assert json.loads((new / "config.json").read_text())["tie_word_embeddings"] is True
    with pytest.warns(UserWarning, match="files hold different weights"):
        again = compare(new)
    assert again.config == ours.config


def test_weights_that_are_one_here_must_be_one_in_the_files(tmp_path):
    _, values, weights = saved(TestBart, tmp_path)
    weights["model.encoder.embed_tokens.weight"] = torch.randn(61, 40)
    rewrite(tmp_path, values, weights)
    both = r"'model\.shared\.weight' and 'model\.encoder\.embed_tokens\.weight' differ"
    with pytest.raises(CheckpointError, match=both):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_missing_keys_have_the_defaults_of_transformers(family):
    import transformers

    theirs = transformers.AutoConfig.for_model(family)
    ours = write_config(read_config({"model_type": family}))
    again = transformers.AutoConfig.for_model(**ours)
    for key, value in theirs.to_dict().items():
        if key not in ("architectures", "dtype"):
            assert again.to_dict()[key] == value, key


@pytest.mark.parametrize(
    ("family", "keys", "expected"),
    [
        ("t5", {"feed_forward_proj": "glu-relu"}, "feed_forward_proj is 'glu-relu'"),
        ("t5", {"feed_forward_proj": "gated-swiglu"}, "feed_forward_proj is 'swiglu'"),
        ("t5", {"relative_attention_num_buckets": 3}, "count is 3"),
        ("t5", {"d_model": "512"}, "expected a whole number"),
        ("t5", {"architectures": ["T5EncoderModel"]}, "classes with a decoder"),
        ("t5", {"scale_decoder_outputs": 1}, "expected true or false"),
        ("bart", {"normalize_before": True}, "expected false, as every BART has it"),
        ("bart", {"normalize_embedding": False}, "expected true, as every BART has it"),
        ("bart", {"tie_word_embeddings": False}, "expected true"),
        ("bart", {"decoder_attention_heads": 7}, "no multiple of num_attention_heads 7"),
        ("bart", {"encoder_layers": 0}, "encoder_layers is 0"),
        ("bart", {"forced_eos_token_id": "</s>"}, "expected the id of a token"),
    ],
)
def test_what_cannot_be_is_said(family, keys, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config({"model_type": family} | keys, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")


def test_what_a_pair_cannot_do_is_said(tmp_path):
    ours = make_model(read_config({"model_type": "bart"} | BART_SIZES))
    ids = torch.tensor([[5, 6]])
    with pytest.raises(RequestError, match="needs decoder_input_ids"):
        ours(ids)
    with pytest.raises(RequestError, match="needs input_ids"):
        ours(decoder_input_ids=ids)
    with pytest.raises(CheckpointError, match="'pre' or 'post'"):
        replace(ours.config, block="parallel")
    with pytest.raises(CheckpointError, match="The head 'causal' needs a body"):
        make_model(ours.config, "causal")
    bare = make_model(replace(ours.config, decoder_start_token_id=None), "embedding")
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        bare(ids)
