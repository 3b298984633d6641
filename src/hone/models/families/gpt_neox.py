"""GPT-NeoX (Black et al. 2022), as of Pythia and Polyglot-Ko: a parallel residual."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, field_of, written_common
from hone.models.keys import Keys, written_activation
from hone.models.positions import Rotary, read_rope, write_rope
from hone.models.rules import Rule, join_heads, split_heads

_DEFAULTS = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
# The share of a head that turns, where the file is silent.
_FRACTION = 0.25


def read(keys: Keys) -> ModelConfig:
    """``GPTNeoXConfig``."""
    keys = keys.filled(**_DEFAULTS)
    bias = keys.flag("attention_bias", True)
    return ModelConfig(
        **common_fields(keys),
        hidden_size=keys.whole("hidden_size", least=1),
        intermediate_size=keys.whole("intermediate_size", least=1),
        num_hidden_layers=keys.whole("num_hidden_layers", least=1),
        num_attention_heads=keys.whole("num_attention_heads", least=1),
        max_position_embeddings=keys.whole("max_position_embeddings", 2048, least=1),
        positions=read_rope(keys.values, keys.where, fraction_default=_FRACTION),
        attention_bias=bias,
        output_bias=bias,
        activation=keys.activation("hidden_act", "gelu"),
        gated=False,
        mlp_bias=True,
        block="parallel" if keys.flag("use_parallel_residual", True) else "pre",
        norm="layer",
        norm_bias=True,
        norm_eps=keys.positive("layer_norm_eps", 1e-5),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``GPTNeoXConfig``."""
    positions = field_of(config, "positions", Rotary)
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": write_rope(positions, _FRACTION),
        "attention_bias": config.attention_bias,
        "hidden_act": written_activation(config),
        "use_parallel_residual": config.block == "parallel",
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``GPTNeoXModel`` and its heads."""
    theirs, ours = "gpt_neox.layers.*", "model.layers.*"
    attention = f"{ours}.self_attn"
    named = (
        Rule("gpt_neox.embed_in", "model.embed_tokens"),
        Rule(f"{theirs}.input_layernorm", f"{ours}.input_layernorm"),
        Rule(
            f"{theirs}.attention.query_key_value",
            (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            split=split_heads,
            join=join_heads,
        ),
        Rule(f"{theirs}.attention.dense", f"{attention}.o_proj"),
        Rule(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_layernorm"),
        Rule(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up_proj"),
        Rule(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down_proj"),
        Rule("gpt_neox.final_layer_norm", "model.norm"),
        Rule("embed_out", "lm_head"),
    )
    if config.head == "token-classification":
        return (*named, Rule("classifier", "score"))
    return named


FAMILY = Family(
    "gpt_neox",
    "GPTNeoX",
    read,
    write,
    rules,
    prefix="gpt_neox",
    # Causal masks and frequencies, which older releases saved with the weights.
    ignored=(r"\.attention\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$"),
    old_names=((r"^lm_head\.", "embed_out."),),
    features=("parallel residual", "partial rotary", "LayerNorm", "biases"),
)
