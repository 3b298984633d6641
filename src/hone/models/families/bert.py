"""BERT (Devlin et al. 2018): the encoder that scores masked tokens from both sides."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, written_common
from hone.models.keys import Keys, written_activation
from hone.models.positions import Learned
from hone.models.rules import Rule

_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def encoder_fields(keys: Keys) -> dict[str, Any]:
    """What BERT and its successors have in common, but for positions and transforms.

    Raises:
        CheckpointError: positions of another kind, or attention to a source.
    """
    kind = keys.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise keys.wrong("position_embedding_type", kind, "'absolute', the only kind still in use")
    if keys.flag("add_cross_attention", False):
        raise keys.wrong("add_cross_attention", True, "false: an encoder alone has no source")
    return common_fields(keys) | {
        "hidden_size": keys.whole("hidden_size", least=1),
        "intermediate_size": keys.whole("intermediate_size", least=1),
        "num_hidden_layers": keys.whole("num_hidden_layers", least=1),
        "num_attention_heads": keys.whole("num_attention_heads", least=1),
        "causal": keys.flag("is_decoder", False),
        "activation": keys.activation("hidden_act", "gelu"),
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "block": "post",
        "norm": "layer",
        "norm_eps": keys.positive("layer_norm_eps", 1e-12),
        "norm_bias": True,
        "final_norm": False,
        "embedding_norm": True,
        "token_types": keys.whole("type_vocab_size", 2),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", True),
        "head_bias": True,
        "pooling": "cls",
        "score_bias": True,
    }


def written_encoder(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`encoder_fields`."""
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "is_decoder": config.causal,
        "hidden_act": written_activation(config),
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.token_types,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def read(keys: Keys) -> ModelConfig:
    """``BertConfig``."""
    keys = keys.filled(**_DEFAULTS)
    fields = encoder_fields(keys)
    words = (fields["activation"], "norm")
    return ModelConfig(
        **fields,
        positions=Learned(),
        max_position_embeddings=keys.whole("max_position_embeddings", least=1),
        transforms={"masked": words, "causal": words, "classification": ("tanh",)},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``BertConfig``."""
    return written_encoder(config) | {"max_position_embeddings": config.max_position_embeddings}


def body_rules(prefix: str) -> Sequence[Rule]:
    """Names of ``BertModel`` under ``prefix``."""
    theirs, ours = f"{prefix}.encoder.layer.*", "model.layers.*"
    embeddings = f"{prefix}.embeddings"
    return (
        Rule(f"{embeddings}.word_embeddings", "model.embed_tokens"),
        Rule(f"{embeddings}.position_embeddings", "model.embed_positions"),
        Rule(f"{embeddings}.token_type_embeddings", "model.embed_types"),
        Rule(f"{embeddings}.LayerNorm", "model.embed_norm"),
        Rule(f"{theirs}.attention.self.query", f"{ours}.self_attn.q_proj"),
        Rule(f"{theirs}.attention.self.key", f"{ours}.self_attn.k_proj"),
        Rule(f"{theirs}.attention.self.value", f"{ours}.self_attn.v_proj"),
        Rule(f"{theirs}.attention.output.dense", f"{ours}.self_attn.o_proj"),
        Rule(f"{theirs}.attention.output.LayerNorm", f"{ours}.input_layernorm"),
        Rule(f"{theirs}.intermediate.dense", f"{ours}.mlp.up_proj"),
        Rule(f"{theirs}.output.dense", f"{ours}.mlp.down_proj"),
        Rule(f"{theirs}.output.LayerNorm", f"{ours}.post_attention_layernorm"),
    )


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``BertModel`` and its heads."""
    if config.head not in ("masked", "causal"):
        # What the paper calls the pooler.
        return (
            *body_rules("bert"),
            Rule("bert.pooler.dense", "transform.dense"),
            Rule("classifier", "score"),
        )
    words = "cls.predictions"
    # The bias stands beside the layer that shares its weight with the embedding.
    bias = (Rule(f"{words}.bias", "lm_head.bias"),) if config.tie_word_embeddings else ()
    return (
        *body_rules("bert"),
        Rule(f"{words}.transform.dense", "transform.dense"),
        Rule(f"{words}.transform.LayerNorm", "transform.norm"),
        *bias,
        Rule(f"{words}.decoder", "lm_head"),
    )


def carried(config: ModelConfig) -> Sequence[str]:
    """The pooler of a bare body, and a bias that an untied output layer leaves unused."""
    if config.head == "embedding":
        return ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    untied = config.head in ("masked", "causal") and not config.tie_word_embeddings
    return ("cls.predictions.bias",) if untied else ()


FAMILY = Family(
    "bert",
    "Bert",
    read,
    write,
    rules,
    prefix="bert",
    head="masked",
    heads={"causal": "BertLMHeadModel"},
    carried=carried,
    # Computed; and what only next-sentence prediction reads.
    ignored=(r"embeddings\.position_ids$", r"^cls\.seq_relationship\.", r"^(bert\.)?pooler\."),
    old_names=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
        (r"^cls\.predictions\.decoder\.bias$", "cls.predictions.bias"),
    ),
    features=("learned positions", "post-norm", "token types", "pooler", "tied head"),
)
