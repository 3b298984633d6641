"""What config.json may hold by mistake: a model or one sentence, and nothing else."""

import json
import math

import pytest
import torch

from hone.core.errors import CheckpointError
from hone.models import find_family, read_config, write_config
from hone.models.families import known_families
from hone.models.heads import make_model

# Keys of small models, by the names that some of the families have for them.
SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
SMALL_BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
SPACE = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
VALUES = {
    "t5": SMALL_T5 | {"vocab_size": 61, "decoder_start_token_id": 0},
    "bart": SMALL_BART | {"vocab_size": 61, "max_position_embeddings": 64},
    "mamba": SPACE,
    "mamba2": SPACE | {"num_heads": 4, "head_dim": 8, "n_groups": 2},
    "mixtral": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": SMALL | EXPERTS | {"shared_expert_intermediate_size": 8},
    "qwen3_moe": SMALL | EXPERTS,
    "hone": {name: value for name, value in SMALL.items() if name != "head_dim"},
}
# What is refused by the name of our own field, once the values are put together.
ROUNDABOUT = (
    "router_aux_loss_coef",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)
BAD = (-1, 0, 10**30, "x", [], {}, math.nan, True, None)


def small(family: str) -> dict:
    """The whole content of a small model's config.json, and keys that only some files have."""
    values = VALUES.get(family, SMALL) | {"model_type": family}
    written = json.loads(json.dumps(write_config(read_config(values))))
    more = {
        "quantization_config": None,
        "problem_type": None,
        "id2label": None,
        "num_labels": None,
        "decoder_start_token_id": 0,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 0,
        "expand": 2,
        "layer_types": None,
        "sliding_window": None,
        "rope_scaling": None,
        "rope_theta": None,
        "time_step_limit": None,
        "dense_act_fn": None,
        "is_gated_act": None,
        "mlp_only_layers": None,
    }
    return written if family == "hone" else more | written


def build(values: dict) -> str | None:
    """The sentence that refuses ``values``; None where a model is made of them."""
    try:
        config = read_config(values, "some/config.json")
    except CheckpointError as error:
        return str(error)
    try:
        with torch.device("meta"):
            make_model(config)
    except CheckpointError as error:
        return f"some/config.json: {error}"
    return None


@pytest.mark.parametrize("family", known_families())
def test_any_value_gives_a_model_or_one_sentence(family):
    values = small(family)
    assert build(values) is None
    for key in values:
        for bad in BAD:
            message = build(values | {key: bad})
            assert message is None or (
                "\n" not in message
                and message.startswith("some/config.json: ")
                and (key in message or key in ROUNDABOUT or "needs a body" in message)
            ), (key, bad)


@pytest.mark.parametrize("family", known_families())
def test_any_value_within_an_object_gives_a_model_or_one_sentence(family):
    values = small(family)
    values |= {"rope_theta": 10**30} if "rope_parameters" not in values else {}
    parts = {key: part for key, part in values.items() if isinstance(part, dict)}
    for key, part in parts.items():
        for inner in part:
            for bad in BAD:
                message = build(values | {key: part | {inner: bad}})
                assert message is None or "\n" not in message, (key, inner, bad)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_any_scaling_gives_a_model_or_one_sentence(kind):
    scaling = {
        "rope_type": kind,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "attention_factor": 1.0,
        "truncate": True,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    for key in scaling:
        for bad in (*BAD, [10**30] * 4):
            message = build(small("llama") | {"rope_parameters": scaling | {key: bad}})
            assert message is None or "\n" not in message, (key, bad)


@pytest.mark.parametrize(
    ("family", "key", "bad"),
    [
        ("llama", "architectures", 3),
        ("llama", "architectures", True),
        ("llama", "architectures", {"causal": 1}),
        ("llama", "architectures", "LlamaForCausalLM"),
        ("llama", "hidden_act", []),
        ("llama", "hidden_act", {}),
        ("llama", "head_dim", -8),
        ("llama", "hidden_size", 2**31),
        ("llama", "problem_type", []),
        ("llama", "quantization_config", 4),
        ("llama", "num_labels", 0),
        ("bert", "type_vocab_size", -1),
        ("t5", "architectures", 3),
        ("t5", "d_kv", -1),
        ("gpt2", "n_inner", 10**30),
        ("mamba", "state_size", -1),
        ("mamba", "conv_kernel", -1),
        ("mamba", "time_step_rank", -1),
        ("mamba", "expand", math.nan),
        ("mamba2", "n_groups", 0),
        ("mamba2", "time_step_limit", [1, "a"]),
        ("mamba2", "time_step_limit", [2.0, 1.0]),
        ("mamba2", "time_step_limit", [math.nan, 1.0]),
        ("hone", "encoder", 3),
        ("hone", "positions", {"name": []}),
        ("hone", "num_key_value_heads", -1),
    ],
)
def test_the_key_is_named(family, key, bad):
    values = small(family) | {key: bad}
    if family == "mamba" and key == "expand":
        del values["intermediate_size"]
    message = build(values)
    assert message is not None, "it was read"
    assert message.startswith("some/config.json: ")
    assert key in message
    assert "\n" not in message


SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
FED = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@pytest.mark.parametrize("family", ["llama", "bart", "hone"])
@pytest.mark.parametrize("key", SPECIAL + FED)
@pytest.mark.parametrize("bad", [True, 1.0, "2", -2, {}, 10**30])
def test_special_tokens_are_whole_numbers(family, key, bad):
    message = build(small(family) | {key: bad})
    assert message is not None
    assert f"{key} is {bad!r}" in message


@pytest.mark.parametrize("key", FED)
def test_what_a_model_is_fed_is_in_its_vocabulary(key):
    message = build(small("bart") | {key: 61})
    assert message is not None
    assert "less than vocab_size 61" in message
    assert build(small("bart") | {key: 60}) is None


@pytest.mark.parametrize("bad", [[2, True], [2.0], ["2"], [[2]], [-2]])
def test_lists_of_ends_hold_whole_numbers(bad):
    message = build(small("llama") | {"eos_token_id": bad})
    assert message is not None
    assert "eos_token_id" in message


def test_ids_that_real_files_hold_are_read():
    llama = small("llama")
    config = read_config(llama | {"pad_token_id": -1, "eos_token_id": [2, 7]})
    assert config.pad_token_id is None
    assert config.eos_token_id == (2, 7)
    beyond = read_config(llama | {"pad_token_id": 61, "eos_token_id": 50256, "bos_token_id": 99})
    assert (beyond.pad_token_id, beyond.eos_token_id, beyond.bos_token_id) == (61, 50256, 99)
    assert find_family("llama").write(beyond)["pad_token_id"] == 61
