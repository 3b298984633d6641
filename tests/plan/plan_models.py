"""A small configuration of every family."""

from hone.models import known_families, read_config

SIZES = {
    "vocab_size": 1200,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
_BART = {"d_model": 64, "encoder_ffn_dim": 160, "decoder_ffn_dim": 96}
_BART |= {"encoder_layers": 2, "decoder_layers": 3}
_BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_OWN = {
    "bart": _BART,
    "bloom": {"n_layer": 3, "n_head": 4},
    "gpt2": _GPT2,
    "mamba": {"state_size": 16},
    "mamba2": {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    "qwen2_moe": _MOE | {"shared_expert_intermediate_size": 96, "decoder_sparse_step": 2},
    "qwen3_moe": _MOE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "t5": {"d_model": 64, "d_ff": 160, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4},
    "hone": {"block": "sandwich", "positions": {"name": "alibi"}, "qk_norm": True},
}
FAMILIES = known_families()


def values_of(family, **changes):
    """The content of the ``config.json`` of a small model."""
    return {"model_type": family, **SIZES, **_OWN.get(family, {}), **changes}


def config_of(family, **changes):
    """A small model of ``family``."""
    return read_config(values_of(family, **changes))
