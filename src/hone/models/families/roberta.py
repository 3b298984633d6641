"""RoBERTa (Liu et al. 2019): BERT with other positions and other names for its heads."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.families.bert import body_rules, encoder_fields, written_encoder
from hone.models.family import Family
from hone.models.fields import field_of
from hone.models.keys import Keys
from hone.models.positions import Learned
from hone.models.rules import Rule

_DEFAULTS = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def read(keys: Keys) -> ModelConfig:
    """``RobertaConfig``."""
    keys = keys.filled(**_DEFAULTS)
    # Rows up to that of padding stand for no position.
    offset = keys.whole("pad_token_id") + 1
    rows = keys.whole("max_position_embeddings", least=1)
    if rows <= offset:
        raise keys.wrong("max_position_embeddings", rows, f"more than pad_token_id + 1 = {offset}")
    return ModelConfig(
        **encoder_fields(keys),
        positions=Learned(offset),
        max_position_embeddings=rows - offset,
        transforms={
            "masked": ("gelu", "norm"),
            "causal": ("gelu", "norm"),
            "classification": ("tanh",),
        },
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``RobertaConfig``."""
    positions = field_of(config, "positions", Learned)
    rows = config.max_position_embeddings + positions.offset
    return written_encoder(config) | {
        "max_position_embeddings": rows,
        "pad_token_id": positions.offset - 1,
    }


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Names of ``RobertaModel`` and its heads."""
    body = body_rules("roberta")
    if config.head == "token-classification":
        return (*body, Rule("classifier", "score"))
    if config.head == "classification":
        return (
            *body,
            Rule("classifier.dense", "transform.dense"),
            Rule("classifier.out_proj", "score"),
        )
    # The bias stands beside the layer that shares its weight with the embedding.
    bias = (Rule("lm_head.bias", "lm_head.bias"),) if config.tie_word_embeddings else ()
    return (
        *body,
        Rule("lm_head.dense", "transform.dense"),
        Rule("lm_head.layer_norm", "transform.norm"),
        *bias,
        Rule("lm_head.decoder", "lm_head"),
    )


def carried(config: ModelConfig) -> Sequence[str]:
    """The pooler of a bare body, and a bias that an untied output layer leaves unused."""
    if config.head == "embedding":
        return ("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")
    untied = config.head in ("masked", "causal") and not config.tie_word_embeddings
    return ("lm_head.bias",) if untied else ()


FAMILY = Family(
    "roberta",
    "Roberta",
    read,
    write,
    rules,
    prefix="roberta",
    head="masked",
    carried=carried,
    ignored=(r"embeddings\.position_ids$", r"^(roberta\.)?pooler\."),
    old_names=(
        (r"^lm_head\.weight$", "lm_head.decoder.weight"),
        (r"^lm_head\.decoder\.bias$", "lm_head.bias"),
    ),
    features=("learned positions", "post-norm", "tied head"),
)
