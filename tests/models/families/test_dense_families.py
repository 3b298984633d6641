"""Decoders without experts: Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 and Gemma 3."""

from interop import CausalInterop

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


class TestMistral(CausalInterop):
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


class TestQwen2(CausalInterop):
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


class TestQwen3(CausalInterop):
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


class TestGemma2(CausalInterop):
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


class TestGemma3(CausalInterop):
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


class TestPhi3(CausalInterop):
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
    }
