"""ModernBERT (Warner et al. 2024): rotary positions, local and global attention, GeGLU."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import (
    common_fields,
    field_of,
    sliding_layers,
    written_common,
    written_layer_types,
)
from hone.models.keys import Keys, activation_name, written_activation
from hone.models.positions import Rotary, read_rope, write_rope
from hone.models.rules import Rule, ffn_rows, join_rows, key_rows, query_rows, split_rows

_DEFAULTS = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "bos_token_id": 50281,
    "eos_token_id": 50282,
    "pad_token_id": 50283,
}
_THETAS = {"full_attention": 160000.0, "sliding_attention": 10000.0}


def read(keys: Keys) -> ModelConfig:
    """``ModernBertConfig``, and its older form with ``global_attn_every_n_layers``."""
    keys = keys.filled(**_DEFAULTS)
    every = keys.whole("global_attn_every_n_layers", 3)
    if every < 1:
        raise keys.wrong("global_attn_every_n_layers", every, "a whole number of 1 or more")
    if (old := keys.get("rope_scaling", None)) is not None:
        raise keys.wrong("rope_scaling", old, "rope_parameters with an object per type of layer")
    pooling = keys.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise keys.wrong("classifier_pooling", pooling, "'cls' or 'mean'")
    full, local = (
        read_rope(keys.values, keys.where, theta, kind) for kind, theta in _THETAS.items()
    )
    bias = keys.flag("attention_bias", False)
    head = (keys.activation("classifier_activation", "gelu"), "norm")
    return ModelConfig(
        **common_fields(keys),
        hidden_size=keys.whole("hidden_size", least=1),
        intermediate_size=keys.whole("intermediate_size", least=1),
        num_hidden_layers=keys.whole("num_hidden_layers", least=1),
        num_attention_heads=keys.whole("num_attention_heads", least=1),
        max_position_embeddings=keys.whole("max_position_embeddings", 8192, least=1),
        causal=False,
        positions=full,
        local_positions=local,
        # They count the tokens on both sides, the token itself not among them.
        sliding_window=keys.whole("local_attention", 128) // 2 + 1,
        sliding_layers=sliding_layers(keys, lambda layer: layer % every > 0),
        attention_bias=bias,
        output_bias=bias,
        activation=keys.activation("hidden_activation", "gelu"),
        mlp_bias=keys.flag("mlp_bias", False),
        norm="layer",
        norm_eps=keys.positive("norm_eps", 1e-5),
        norm_bias=keys.flag("norm_bias", False),
        first_norm=False,
        embedding_norm=True,
        tie_word_embeddings=keys.flag("tie_word_embeddings", True),
        head_bias=keys.flag("decoder_bias", True),
        transforms={"masked": head, "classification": head, "token-classification": head},
        transform_bias=keys.flag("classifier_bias", False),
        pooling=pooling,
        score_bias=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``ModernBertConfig``."""
    positions = field_of(config, "positions", Rotary)
    sliding_window = field_of(config, "sliding_window", int)
    local = config.local_positions or positions
    span = config.extra.get("local_attention", 128)
    if span // 2 != sliding_window - 1:
        span = 2 * (sliding_window - 1)
    head = config.transforms.get("masked", ("gelu",))
    found = str(config.extra.get("classifier_activation"))
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": {
            "full_attention": write_rope(positions),
            "sliding_attention": write_rope(local),
        },
        "local_attention": span,
        "layer_types": written_layer_types(config),
        "attention_bias": config.attention_bias,
        "hidden_activation": written_activation(config),
        "mlp_bias": config.mlp_bias,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "decoder_bias": config.head_bias,
        "classifier_activation": activation_name(head[0], found),
        "classifier_bias": config.transform_bias,
        "classifier_pooling": config.pooling,
    }


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``ModernBertModel`` and its heads."""
    layer, attention = "model.layers.*", "model.layers.*.self_attn"
    return (
        Rule("model.embeddings.tok_embeddings", "model.embed_tokens"),
        Rule("model.embeddings.norm", "model.embed_norm"),
        Rule(f"{layer}.attn_norm", f"{layer}.input_layernorm"),
        Rule(
            f"{layer}.attn.Wqkv",
            (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            split=split_rows(query_rows, key_rows, key_rows),
            join=join_rows,
        ),
        Rule(f"{layer}.attn.Wo", f"{attention}.o_proj"),
        Rule(f"{layer}.mlp_norm", f"{layer}.post_attention_layernorm"),
        # The half that is activated comes first.
        Rule(
            f"{layer}.mlp.Wi",
            (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
            split=split_rows(ffn_rows, ffn_rows),
            join=join_rows,
        ),
        Rule(f"{layer}.mlp.Wo", f"{layer}.mlp.down_proj"),
        Rule("model.final_norm", "model.norm"),
        Rule("head.dense", "transform.dense"),
        Rule("head.norm", "transform.norm"),
        Rule("decoder", "lm_head"),
        Rule("classifier", "score"),
    )


FAMILY = Family(
    "modernbert",
    "ModernBert",
    read,
    write,
    rules,
    head="masked",
    features=("local attention", "two rotary bases", "GeGLU", "no biases", "tied head"),
)
