"""GPT-2 (Radford et al. 2019): learned positions, and weights that lie transposed in the files.

Shapes: E hidden.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, written_common
from hone.models.keys import Keys, written_activation
from hone.models.positions import Learned
from hone.models.rules import Rule, join_rows

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def read(keys: Keys) -> ModelConfig:
    """``GPT2Config``."""
    keys = keys.renamed(
        n_positions="max_position_embeddings",
        n_embd="hidden_size",
        n_layer="num_hidden_layers",
        n_head="num_attention_heads",
    ).filled(**_DEFAULTS)
    if keys.flag("add_cross_attention", False):
        raise keys.wrong("add_cross_attention", True, "false: a decoder of its own has no source")
    size, layers = keys.whole("n_embd", least=1), keys.whole("n_layer", least=1)
    return ModelConfig(
        **common_fields(keys),
        hidden_size=size,
        intermediate_size=keys.whole("n_inner", 4 * size, least=1),
        num_hidden_layers=layers,
        num_attention_heads=keys.whole("n_head", least=1),
        max_position_embeddings=keys.whole("n_positions", least=1),
        positions=Learned(),
        attention_bias=True,
        output_bias=True,
        attention_scale=None if keys.flag("scale_attn_weights", True) else 1.0,
        attention_scale_by_layer=keys.flag("scale_attn_by_inverse_layer_idx", False),
        activation=keys.activation("activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        norm="layer",
        norm_bias=True,
        norm_eps=keys.positive("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=keys.flag("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``GPT2Config``."""
    inner = config.intermediate_size
    return written_common(config) | {
        "n_positions": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": None if inner == 4 * config.hidden_size else inner,
        "activation_function": written_activation(config, "gelu_new"),
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.attention_scale is None,
        "scale_attn_by_inverse_layer_idx": config.attention_scale_by_layer,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _split(tensor: "Tensor", config: ModelConfig) -> "Sequence[Tensor]":
    """Queries, keys and values from ``[E, 3E]``, or from a bias ``[3E]``."""
    return tensor.t().chunk(3)


def _join(tensors: "Sequence[Tensor]", config: ModelConfig) -> "Tensor":
    return join_rows(tensors, config).t()


def _turned(theirs: str, ours: str) -> Rule:
    """A product whose weight they hold as input by output; a bias is the same either way."""
    return Rule(
        theirs, ours, split=lambda tensor, _: [tensor.t()], join=lambda tensors, _: tensors[0].t()
    )


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``GPT2Model`` and its heads."""
    block, attention = "model.layers.*", "model.layers.*.self_attn"
    named = (
        Rule("transformer.wte", "model.embed_tokens"),
        Rule("transformer.wpe", "model.embed_positions"),
        Rule("transformer.h.*.ln_1", f"{block}.input_layernorm"),
        Rule(
            "transformer.h.*.attn.c_attn",
            (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            split=_split,
            join=_join,
        ),
        _turned("transformer.h.*.attn.c_proj", f"{attention}.o_proj"),
        Rule("transformer.h.*.ln_2", f"{block}.post_attention_layernorm"),
        _turned("transformer.h.*.mlp.c_fc", f"{block}.mlp.up_proj"),
        _turned("transformer.h.*.mlp.c_proj", f"{block}.mlp.down_proj"),
        Rule("transformer.ln_f", "model.norm"),
    )
    if config.head == "token-classification":
        return (*named, Rule("classifier", "score"))
    return named


FAMILY = Family(
    "gpt2",
    "GPT2",
    read,
    write,
    rules,
    prefix="transformer",
    heads={"causal": "GPT2LMHeadModel"},
    # Causal masks, which older releases saved with the weights.
    ignored=(r"\.attn\.(masked_)?bias$",),
    features=("learned positions", "LayerNorm", "biases", "tied head"),
)
