"""Decoders without experts: Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 and Gemma 3."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from interop import IDS, MASK, SIZES, CausalInterop, call

from hone.core.errors import CheckpointError
from hone.engine.cache import RowCache
from hone.models import CausalLM, load_model, read_config, save_checkpoint, write_config

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


class Dense(CausalInterop):
    steps = 8  # past every window


class TestMistral(Dense):
    family = "mistral"
    cases = {
        "windowed": {"sliding_window": 5},
        "unbounded": {
            "sliding_window": None,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "head_dim": 14,
        },
    }


class TestQwen2(Dense):
    family = "qwen2"
    cases = {
        "tied": {"tie_word_embeddings": True, "sliding_window": 4},
        "upper": {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "num_key_value_heads": 1,
        },
        "listed": {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": YARN,
            "num_key_value_heads": 4,
        },
    }


class TestQwen3(Dense):
    family = "qwen3"
    cases = {
        "tied": {"tie_word_embeddings": True, "head_dim": 14},
        "biased": {
            "attention_bias": True,
            "head_dim": 6,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
        },
        "stretched": {"head_dim": 16, "rope_parameters": YARN | {"attention_factor": 1.3}},
    }


class TestGemma2(Dense):
    family = "gemma2"
    cases = {
        "capped": {
            "head_dim": 14,
            "sliding_window": 4,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "uncapped": {
            "head_dim": 6,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "query_pre_attn_scalar": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    }


class TestGemma3(Dense):
    family = "gemma3_text"
    cases = {
        "alternating": {
            "head_dim": 14,
            "query_pre_attn_scalar": 24,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
        },
        "stretched": {
            "head_dim": 6,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 6,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "attention_bias": True,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    }


LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 1.5, 2.5, 4.0],
}


class TestPhi3(Dense):
    family = "phi3"
    cases = {
        "windowed": {"sliding_window": 4},
        "partial": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.6,
            },
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
        },
        "short": {
            "rope_parameters": LONG | {"partial_rotary_factor": 0.8},
            "original_max_position_embeddings": 32,
        },
        "long": {
            "rope_parameters": LONG | {"partial_rotary_factor": 0.8, "factor": 5.0},
            "original_max_position_embeddings": 2,
        },
    }

    def test_a_prompt_may_enter_the_cache_in_pieces(self, pair, case):
        if case == "long":
            pytest.skip("until a prompt's length is known, it is turned as a short one")
        super().test_a_prompt_may_enter_the_cache_in_pieces(pair)


TESTS = {
    test.family: test
    for test in (TestMistral, TestQwen2, TestQwen3, TestPhi3, TestGemma2, TestGemma3)
}
CASES = [
    pytest.param(family, changes, id=f"{family}-{name}")
    for family, test in TESTS.items()
    for name, changes in test.cases.items()
]
HEADS = [
    (family, head)
    for family in TESTS
    for head in ("SequenceClassification", "TokenClassification")
    if (family, head) != ("gemma3_text", "TokenClassification")  # there is no such class
]
BODY = {"head_dim": 10, "sliding_window": 4}
OLD_LONG = {key: LONG[key] for key in ("short_factor", "long_factor")}
FLAT = {"rope_type": "linear", "factor": 8.0}


def their_config(family, values):
    import transformers

    values = deepcopy({key: value for key, value in values.items() if key != "model_type"})
    return transformers.AutoConfig.for_model(family, **values)  # which changes what is nested


def pair_of(family, auto_class, changes, folder, head=None):
    """A random model of theirs with the head of ``auto_class``, and ours from its files."""

    class Test(TESTS[family]):
        pass

    Test.auto_class = auto_class
    theirs = Test().make(changes)
    theirs.save_pretrained(folder / "theirs")
    return theirs, load_model(folder / "theirs", head=head)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_a_config_of_our_own_says_the_same_there(family, changes):
    config = read_config(their_config(family, SIZES | changes).to_dict())
    bare = write_config(replace(config, extra={}))
    assert read_config(their_config(family, bare).to_dict()) == config


@pytest.mark.parametrize("family", TESTS)
def test_what_a_file_does_not_say_is_as_the_family_has_it(family):
    few = {"model_type": family, "vocab_size": 99, "hidden_size": 64, "intermediate_size": 80}
    few |= {"num_hidden_layers": 3, "num_attention_heads": 32}
    assert read_config(few) == read_config(their_config(family, few).to_dict())


@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("mistral", {"rope_theta": 1e6, "sliding_window": None, "head_dim": None}),
        ("mistral", {"torch_dtype": "bfloat16", "rope_scaling": None}),
        ("qwen2", {"rope_theta": 1e6, "use_sliding_window": False, "max_window_layers": 2}),
        (
            "qwen2",
            {
                "rope_theta": 1e6,
                "use_sliding_window": True,
                "max_window_layers": 1,
                "sliding_window": 8,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            },
        ),
        ("qwen3", {"rope_scaling": YARN, "torch_dtype": "float16", "sliding_window": None}),
        ("phi3", {"rope_scaling": OLD_LONG | {"type": "yarn"}, "partial_rotary_factor": 0.8}),
        (
            "phi3",
            {
                "rope_scaling": LONG,
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.8,
                "original_max_position_embeddings": 16,
            },
        ),
        ("gemma2", {"hidden_act": "gelu", "rope_theta": 500.0, "cache_implementation": "hybrid"}),
        ("gemma3_text", {"rope_theta": 1e5, "rope_local_base_freq": 50.0, "rope_scaling": FLAT}),
        ("gemma3_text", {"sliding_window_pattern": 2, "attn_logit_softcapping": None}),
        ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 12}),
    ],
)
def test_older_files_are_read_as_they_read_them(family, old):
    values = SIZES | {"model_type": family} | old
    assert read_config(values) == read_config(their_config(family, values).to_dict())


def test_longrope_had_another_name_in_the_first_files():
    values = SIZES | {"model_type": "phi3", "partial_rotary_factor": 0.8}
    first, later = (
        read_config(values | {"rope_scaling": OLD_LONG | {"type": kind}})
        for kind in ("su", "longrope")
    )
    assert first == later


@pytest.mark.parametrize("family", [family for family in TESTS if family != "phi3"])
def test_families_that_turn_whole_heads_do_not_heed_a_fraction(family, tmp_path):
    theirs, ours = pair_of(family, "AutoModel", BODY | {"partial_rotary_factor": 0.5}, tmp_path)
    assert ours.config.positions.fraction == 1.0
    with torch.no_grad():
        expected = theirs(IDS[-1:], output_hidden_states=True).hidden_states[-1]
        found = ours(IDS[-1:], output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_text_models_cut_out_of_a_multimodal_one_say_even_less():
    few = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    few |= {"num_hidden_layers": 34, "rope_scaling": FLAT, "sliding_window": 1024}
    assert read_config(few) == read_config(their_config("gemma3_text", few).to_dict())


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gemma3", {}, "model_type is 'gemma3', an architecture that hone does not read"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("mistral", {"sliding_window": "4k"}, "sliding_window is '4k'"),
        ("qwen2", {"layer_types": ["full_attention"]}, "for each of 3 layers"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "expected full_attention or"),
        ("qwen2", {"layer_types": 7}, "layer_types is 7"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "a sliding_window for it"),
        ("qwen3", {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
        ("phi3", {"rope_scaling": YARN}, "rope_type is 'yarn'; expected default or longrope"),
        ("phi3", {"rope_scaling": LONG, "head_dim": 12}, "short_factor has 4 numbers"),
        ("gemma2", {"sliding_window": None}, "'sliding_window' is missing"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0"),
        ("gemma2", {"hidden_activation": "mish"}, "hidden_activation is 'mish'"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gemma3_text", {"rope_parameters": FLAT}, "an object for each type of layer"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_sentence(family, changes, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config(SIZES | {"model_type": family} | changes, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_scores_of_classes(family, head, tmp_path):
    theirs, ours = pair_of(family, f"AutoModelFor{head}", BODY | {"num_labels": 3}, tmp_path)
    with torch.no_grad():
        expected, found = call(theirs, IDS, MASK).logits, ours(IDS, MASK).logits
    if head == "TokenClassification":
        expected, found = expected[MASK.bool()], found[MASK.bool()]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    save_checkpoint(tmp_path / "ours", ours)
    again = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(call(again, IDS, MASK).logits, call(theirs, IDS, MASK).logits)


@pytest.mark.parametrize("family", [*TESTS, "both sides"])
def test_a_body_without_a_head(family, tmp_path):
    changes = BODY
    if family == "both sides":
        family = "gemma3_text"
        changes = {"head_dim": 10, "sliding_window": 6, "use_bidirectional_attention": True}
        changes["sliding_window_pattern"] = 2
    theirs, ours = pair_of(family, "AutoModel", changes, tmp_path)
    assert ours.head == "embedding"
    ids = torch.arange(3, 61).view(2, 29)
    with torch.no_grad():
        for arguments in ((ids,), (IDS, MASK)):
            expected = call(theirs, *arguments, output_hidden_states=True)
            found = ours(*arguments, output_hidden_states=True)
            real = (arguments[-1] > 0).bool()
            for mine, original in zip(found.hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(mine[real], original[real], atol=1e-4, rtol=1e-4)
    save_checkpoint(tmp_path / "ours", ours)
    again = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert again.config.to_dict()["sliding_window"] == theirs.config.to_dict()["sliding_window"]
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, theirs(ids).last_hidden_state)
    with pytest.warns(UserWarning, match=r"score\.weight are new"):
        load_model(tmp_path / "ours", head="classification")


@pytest.mark.parametrize("scaling", [LONG, {"rope_type": "dynamic", "factor": 2.0}])
def test_padding_behind_the_tokens_changes_nothing_where_lengths_count(scaling):
    family = "phi3" if scaling is LONG else "llama"
    values = SIZES | {"model_type": family, "hidden_size": 32, "rope_parameters": scaling}
    model = CausalLM(read_config(values | {"original_max_position_embeddings": 3}))
    model.initialise(seed=0)
    ids, hidden = torch.tensor([7, 8, 9, 11, 12, 0, 0]), []
    for count in (5, 7):
        cache = RowCache(model.config, 2, torch.float32)
        cache.begin([2, 3])
        positions = torch.cat((cache.positions(), torch.zeros(2, dtype=torch.int64)))
        with torch.no_grad():
            hidden.append(model.decoder(ids[:count], positions[:count], cache)[:5])
    torch.testing.assert_close(hidden[0], hidden[1])
