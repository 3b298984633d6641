"""BLOOM (Le Scao et al. 2022): ALiBi, and a normalised embedding."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, written_common
from hone.models.keys import Keys
from hone.models.positions import Alibi
from hone.models.rules import Rule, join_heads, split_heads

_DEFAULTS = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(keys: Keys) -> ModelConfig:
    """``BloomConfig``."""
    keys = keys.renamed(
        hidden_size="n_embed", n_layer="num_hidden_layers", n_head="num_attention_heads"
    ).filled(**_DEFAULTS)
    if keys.flag("apply_residual_connection_post_layernorm", False):
        raise keys.wrong(
            "apply_residual_connection_post_layernorm",
            True,
            "false: hone adds to the stream before its normalisation, as published models do",
        )
    size = keys.whole("hidden_size", least=1)
    return ModelConfig(
        **common_fields(keys),
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=keys.whole("n_layer", least=1),
        num_attention_heads=keys.whole("n_head", least=1),
        # Nothing ends there; it is the length that the model was trained on.
        max_position_embeddings=keys.whole("seq_length", 2048, least=1),
        positions=Alibi(),
        attention_bias=True,
        output_bias=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        norm="layer",
        norm_bias=True,
        norm_eps=keys.positive("layer_norm_epsilon", 1e-5),
        embedding_norm=True,
        tie_word_embeddings=keys.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``BloomConfig``."""
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "seq_length": config.max_position_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``BloomModel`` and its heads."""
    theirs, ours = "transformer.h.*", "model.layers.*"
    attention = f"{ours}.self_attn"
    named = (
        Rule("transformer.word_embeddings", "model.embed_tokens"),
        Rule("transformer.word_embeddings_layernorm", "model.embed_norm"),
        Rule(f"{theirs}.input_layernorm", f"{ours}.input_layernorm"),
        Rule(
            f"{theirs}.self_attention.query_key_value",
            (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            split=split_heads,
            join=join_heads,
        ),
        Rule(f"{theirs}.self_attention.dense", f"{attention}.o_proj"),
        Rule(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_layernorm"),
        Rule(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up_proj"),
        Rule(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down_proj"),
        Rule("transformer.ln_f", "model.norm"),
    )
    if config.head == "token-classification":
        return (*named, Rule("classifier", "score"))
    return named


FAMILY = Family(
    "bloom",
    "Bloom",
    read,
    write,
    rules,
    prefix="transformer",
    features=("ALiBi", "embedding norm", "LayerNorm", "biases", "tied head"),
)
