"""The first decoders: GPT-2, GPT-NeoX and BLOOM."""

from interop import CausalInterop

GPT2 = {
    "vocab_size": 61,
    "n_positions": 64,
    "n_embd": 40,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NEOX = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BLOOM = {
    "vocab_size": 61,
    "hidden_size": 40,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class TestGpt2(CausalInterop):
    family = "gpt2"
    sizes = GPT2
    cases = {  # noqa: RUF012
        "tied": {},
        "untied": {"tie_word_embeddings": False, "n_inner": 52, "n_head": 8},
        "scaled-by-layer": {"scale_attn_by_inverse_layer_idx": True, "n_embd": 42, "n_head": 6},
        "unscaled": {"scale_attn_weights": False, "activation_function": "relu"},
    }


class TestGptNeox(CausalInterop):
    family = "gpt_neox"
    sizes = NEOX
    cases = {  # noqa: RUF012
        "parallel": {},
        "in-turn": {"use_parallel_residual": False, "hidden_act": "gelu_fast", "hidden_size": 48},
        "tied": {"tie_word_embeddings": True, "rope_parameters": {"partial_rotary_factor": 0.6}},
        "unbiased": {"attention_bias": False, "rope_parameters": {"partial_rotary_factor": 1.0}},
    }


class TestBloom(CausalInterop):
    family = "bloom"
    sizes = BLOOM
    cases = {  # noqa: RUF012
        "tied": {},
        "untied": {"tie_word_embeddings": False, "hidden_size": 42, "n_head": 6},
    }
