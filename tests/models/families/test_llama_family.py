from interop import CausalInterop

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


class TestLlama(CausalInterop):
    family = "llama"
    cases = {
        "tied": {"tie_word_embeddings": True},
        "untied": {"tie_word_embeddings": False, "num_key_value_heads": 1, "head_dim": 6},
        "biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 14},
        "stretched": {"rope_parameters": LLAMA3, "head_dim": 16},
    }
