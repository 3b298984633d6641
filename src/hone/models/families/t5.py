"""T5 (Raffel et al. 2020) and its revision 1.1: relative position buckets, nothing has a bias."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import Activation, ModelConfig
from hone.models.family import Family
from hone.models.fields import common_fields, field_of, written_common
from hone.models.keys import Keys, activation_name
from hone.models.positions import Buckets
from hone.models.rules import Rule

_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# Their files hold an encoder only.
_HALVES = ("T5EncoderModel", "T5ForTokenClassification")
# Its authors computed the approximation by tanh, and this name means it.
_GATED_GELU = "gated-gelu"


def read(keys: Keys) -> ModelConfig:
    """``T5Config``."""
    for name in keys.names("architectures"):
        if name in _HALVES:
            raise keys.wrong("architectures", name, "one of T5's classes with a decoder")
    keys = keys.renamed(
        d_model="hidden_size",
        d_kv="head_dim",
        num_layers="num_hidden_layers",
        num_heads="num_attention_heads",
    ).filled(**_DEFAULTS)
    size, layers = keys.whole("d_model", least=1), keys.whole("num_layers", least=1)
    activation, gated = _feed_forward(keys)
    shared = common_fields(keys) | {
        "hidden_size": size,
        "intermediate_size": keys.whole("d_ff", least=1),
        "num_attention_heads": keys.whole("num_heads", least=1),
        "head_dim": keys.whole("d_kv", least=1),
        # Nothing ends there; it is the length that the model was trained on.
        "max_position_embeddings": keys.whole("n_positions", 512, least=1),
        "positions": Buckets(
            keys.whole("relative_attention_num_buckets", 32),
            keys.whole("relative_attention_max_distance", 128),
        ),
        "attention_scale": 1.0,
        "activation": activation,
        "gated": gated,
        "norm_eps": keys.positive("layer_norm_epsilon", 1e-6),
    }
    # The original shares the embedding with the output layer and scales what that reads; files of
    # 1.1 say so by denying the one, and newer ones name the other.
    tied = keys.flag("tie_word_embeddings", True)
    scaled = keys.flag("scale_decoder_outputs", tied)
    return ModelConfig(
        **shared,
        num_hidden_layers=keys.whole("num_decoder_layers", layers, least=1),
        encoder=ModelConfig(**shared, num_hidden_layers=layers, causal=False),
        tie_word_embeddings=tied,
        logit_scale=size**-0.5 if scaled else 1.0,
        transforms={"classification": ("tanh",)},
        pooling="eos",
        score_bias=True,
    )


def _feed_forward(keys: Keys) -> tuple[Activation, bool]:
    """The activation, and whether the layer has a gate."""
    name = str(keys.get("feed_forward_proj", "relu"))
    gate, _, activation = name.rpartition("-")
    if gate not in ("", "gated"):
        raise keys.wrong("feed_forward_proj", name, "an activation, alone or after 'gated-'")
    # What transformers derives of that name it writes too; in a file its own keys count for more.
    gated = keys.flag("is_gated_act", bool(gate))
    if keys.get("dense_act_fn", None) is not None:
        return keys.activation("dense_act_fn", "relu"), gated
    if name == _GATED_GELU:
        return "gelu_tanh", gated
    only = Keys({"feed_forward_proj": activation}, keys.where)
    return only.activation("feed_forward_proj", "relu"), gated


def _written_feed_forward(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`_feed_forward`; those that were read where they mean the same."""
    names = ("feed_forward_proj", "dense_act_fn", "is_gated_act")
    found = {name: config.extra[name] for name in names if config.extra.get(name) is not None}
    same = (config.activation, config.gated)
    if "feed_forward_proj" in found and _feed_forward(Keys(found, "config.json")) == same:
        return found
    activation = activation_name(config.activation, "gelu_new")
    if not config.gated:
        name = activation
    else:
        name = _GATED_GELU if config.activation == "gelu_tanh" else f"gated-{activation}"
    return {"feed_forward_proj": name, "dense_act_fn": activation, "is_gated_act": config.gated}


def write(config: ModelConfig) -> dict[str, Any]:
    """``T5Config``."""
    encoder = field_of(config, "encoder", ModelConfig)
    positions = field_of(config, "positions", Buckets)
    return written_common(config) | {
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": encoder.num_hidden_layers,
        "num_decoder_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "relative_attention_num_buckets": positions.count,
        "relative_attention_max_distance": positions.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "is_encoder_decoder": True,
        **_written_feed_forward(config),
    }


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``T5Model`` and its heads."""
    # The body stands bare beside the output layer, and under a name beside other heads.
    prefix = "" if config.head == "seq2seq" else "transformer."
    named = [
        Rule(f"{prefix}shared", "model.shared"),
        Rule("classification_head.dense", "transform.dense"),
        Rule("classification_head.out_proj", "score"),
    ]
    for stack, last in (("encoder", 1), ("decoder", 2)):
        theirs, ours = f"{prefix}{stack}", f"model.{stack}"
        attention, block = f"{theirs}.block.*.layer.0", f"{ours}.layers.*"
        named += _attention(f"{attention}.SelfAttention", f"{block}.self_attn")
        named.append(Rule(f"{attention}.layer_norm", f"{block}.input_layernorm"))
        if stack == "decoder":
            cross = f"{theirs}.block.*.layer.1"
            named += _attention(f"{cross}.EncDecAttention", f"{block}.cross_attn")
            named.append(Rule(f"{cross}.layer_norm", f"{block}.cross_attention_layernorm"))
        mixing = f"{theirs}.block.*.layer.{last}"
        dense, up = f"{mixing}.DenseReluDense", "wi_1" if config.gated else "wi"
        named += [
            Rule(f"{dense}.wi_0", f"{block}.mlp.gate_proj"),
            Rule(f"{dense}.{up}", f"{block}.mlp.up_proj"),
            Rule(f"{dense}.wo", f"{block}.mlp.down_proj"),
            Rule(f"{mixing}.layer_norm", f"{block}.post_attention_layernorm"),
            # In the files the first block has it, and the others of the stack use it too.
            Rule(
                f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias",
                f"{ours}.relative_bias",
            ),
            Rule(f"{theirs}.embed_tokens", f"{ours}.embed_tokens"),
            Rule(f"{theirs}.final_layer_norm", f"{ours}.norm"),
        ]
    return named


def _attention(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{name}", f"{ours}.{name}_proj") for name in "qkvo"]


FAMILY = Family(
    "t5",
    "T5",
    read,
    write,
    rules,
    prefix="transformer",
    head="seq2seq",
    # Cross-attention knows no distances; early files held a table for it all the same.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
    features=("encoder-decoder", "position buckets", "RMSNorm", "gated or plain", "no biases"),
)
