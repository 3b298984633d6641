"""Encoder-decoders: T5 and BART."""

from interop import Seq2SeqInterop

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
