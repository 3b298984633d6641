"""BART (Lewis et al. 2020): an encoder-decoder after Vaswani et al. 2017, its positions learnt."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, field_of, written_common
from hone.models.keys import Keys, written_activation
from hone.models.positions import Learned
from hone.models.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = {
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
    "num_labels": 3,
}
# What files from before mBART had a family of its own may say, and all of today's leave out.
_FIXED = {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True}


def read(keys: Keys) -> ModelConfig:
    """``BartConfig``."""
    for name, only in _FIXED.items():
        if keys.flag(name, only) is not only:
            raise keys.wrong(name, not only, f"{str(only).lower()}, as every BART has it")
    keys = keys.renamed(
        d_model="hidden_size",
        encoder_layers="num_hidden_layers",
        encoder_attention_heads="num_attention_heads",
        init_std="initializer_range",
    ).filled(**_DEFAULTS)
    if not keys.flag("tie_word_embeddings", True):
        raise keys.wrong("tie_word_embeddings", False, "true: one embedding serves every layer")
    size = keys.whole("d_model", least=1)
    shared = common_fields(keys) | {
        "hidden_size": size,
        "max_position_embeddings": keys.whole("max_position_embeddings", least=1),
        "initializer_range": keys.positive("init_std", 0.02),
        "positions": Learned(offset=2),
        "attention_bias": True,
        "output_bias": True,
        "activation": keys.activation("activation_function", "gelu"),
        "gated": False,
        "mlp_bias": True,
        "block": "post",
        "norm": "layer",
        "norm_eps": 1e-5,
        "norm_bias": True,
        "final_norm": False,
        "embedding_scale": math.sqrt(size) if keys.flag("scale_embedding", False) else 1.0,
        "embedding_norm": True,
    }
    return ModelConfig(
        **shared,
        **_stack(keys, "decoder"),
        encoder=ModelConfig(**shared, **_stack(keys, "encoder"), causal=False),
        tie_word_embeddings=True,
        head_bias=True,
        transforms={"classification": ("tanh",)},
        pooling="eos",
        score_bias=True,
    )


def _stack(keys: Keys, name: str) -> dict[str, Any]:
    """The sizes that the encoder and the decoder have each for itself."""
    return {
        "intermediate_size": keys.whole(f"{name}_ffn_dim", least=1),
        "num_hidden_layers": keys.whole(f"{name}_layers", least=1),
        "num_attention_heads": keys.whole(f"{name}_attention_heads", least=1),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """``BartConfig``."""
    encoder = field_of(config, "encoder", ModelConfig)
    values = written_common(config) | {
        "d_model": config.hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "activation_function": written_activation(config, "gelu"),
        "scale_embedding": config.embedding_scale != 1.0,
        "tie_word_embeddings": True,  # false means to them three embeddings
        "init_std": config.initializer_range,
        "decoder_start_token_id": config.decoder_start_token_id,
        "forced_eos_token_id": config.forced_eos_token_id,
        "is_encoder_decoder": True,
    }
    for name, stack in (("encoder", encoder), ("decoder", config)):
        values[f"{name}_ffn_dim"] = stack.intermediate_size
        values[f"{name}_layers"] = stack.num_hidden_layers
        values[f"{name}_attention_heads"] = stack.num_attention_heads
    del values["initializer_range"]
    return values


def _row(tensor: "Tensor", config: ModelConfig) -> "Sequence[Tensor]":
    """A bias that they hold as ``[1, V]``."""
    return [tensor.flatten()]


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``BartModel`` and its heads."""
    named = [
        Rule("final_logits_bias", "lm_head.bias", split=_row, join=lambda ours, _: ours[0][None]),
        Rule("classification_head.dense", "transform.dense"),
        Rule("classification_head.out_proj", "score"),
    ]
    for stack in ("model.encoder", "model.decoder"):
        block = f"{stack}.layers.*"
        named += [
            Rule(f"{stack}.layernorm_embedding", f"{stack}.embed_norm"),
            Rule(f"{block}.self_attn.out_proj", f"{block}.self_attn.o_proj"),
            Rule(f"{block}.self_attn_layer_norm", f"{block}.input_layernorm"),
            Rule(f"{block}.encoder_attn.out_proj", f"{block}.cross_attn.o_proj"),
            Rule(f"{block}.encoder_attn", f"{block}.cross_attn"),
            Rule(f"{block}.encoder_attn_layer_norm", f"{block}.cross_attention_layernorm"),
            Rule(f"{block}.fc1", f"{block}.mlp.up_proj"),
            Rule(f"{block}.fc2", f"{block}.mlp.down_proj"),
            Rule(f"{block}.final_layer_norm", f"{block}.post_attention_layernorm"),
        ]
    return named


FAMILY = Family(
    "bart",
    "Bart",
    read,
    write,
    rules,
    head="seq2seq",
    ignored=(r"^(model\.)?(encoder|decoder)\.version$",),
    features=("encoder-decoder", "learned positions", "post-norm", "biases", "tied head"),
)
