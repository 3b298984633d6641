"""The model of a recipe: its ``[model]`` table as a configuration."""

from dataclasses import replace
from typing import Any, Literal

from hone.core.errors import CheckpointError, ConfigError
from hone.models import Experts, Head, ModelConfig, StateSpace
from hone.models.families import best_family
from hone.models.positions import POSITIONS, Positions, Rotary, read_rope
from hone.recipes.settings import ModelSettings
from hone.text.tokenizer import Tokenizer

# Channels of a Mamba layer per hidden one, and per head of Mamba-2 (Dao and Gu 2024, section 7).
_EXPANSION, _CHANNELS_PER_HEAD = 2, 64
_BERT_TRANSFORMS: dict[Head, tuple[str, ...]] = {
    "masked": ("gelu", "norm"),
    "causal": ("gelu", "norm"),
    "classification": ("tanh",),
}


def model_config(
    model: ModelSettings,
    tokenizer: Tokenizer,
    head: Literal["causal", "masked", "seq2seq"] = "causal",
) -> ModelConfig:
    """The configuration that ``[model]`` describes, of the family that other programs know best.

    Args:
        head: "masked" is an encoder, which sees both sides; "seq2seq" a decoder of the same shape
            with an encoder of ``encoder_layers`` before it.

    Raises:
        ConfigError: choices that do not fit one another.
    """
    if head != "causal" and model.mixer != "attention":
        raise ConfigError(
            f'The table "model" of the recipe: the mixer {model.mixer!r} sees no token after the '
            'current one; choose mixer = "attention", or the objective "causal".'
        )
    try:
        config = _decoder(model, tokenizer)
        if head == "masked":
            config = _encoder(model, config)
        elif head == "seq2seq":
            config = _pair(model, config)
    except CheckpointError as error:
        raise ConfigError(f'The table "model" of the recipe: {error}') from error
    return replace(config, model_type=best_family(config))


def _encoder(model: ModelSettings, config: ModelConfig) -> ModelConfig:
    """What sees both sides; its head and the places of its norms are those of BERT."""
    post = model.block == "post"
    return replace(
        config,
        head="masked",
        causal=False,
        embedding_norm=True,
        final_norm=not post,
        head_bias=True,
        transforms=_BERT_TRANSFORMS,
        pooling="cls",
        score_bias=True,
        embedding_pooling="mean",
    )


def _pair(model: ModelSettings, config: ModelConfig) -> ModelConfig:
    """A decoder that reads an encoder; with position buckets, scaled as T5 is."""
    config = replace(config, decoder_start_token_id=config.pad_token_id)
    if model.positions == "buckets":
        config = replace(config, attention_scale=1.0)
    encoder = replace(
        config,
        causal=False,
        num_hidden_layers=model.encoder_layers or model.layers,
        embedding_pooling="mean",
        tie_word_embeddings=False,
    )
    return replace(
        config,
        head="seq2seq",
        encoder=encoder,
        logit_scale=model.hidden**-0.5 if model.positions == "buckets" and model.tie else 1.0,
        transforms={"classification": ("tanh",)},
        pooling="eos",
        score_bias=True,
    )


def _decoder(model: ModelSettings, tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=model.hidden,
        num_hidden_layers=model.layers,
        max_position_embeddings=model.context,
        norm=model.norm,
        norm_bias=model.norm == "layer" and model.biases,
        logit_softcap=model.logit_softcap,
        tie_word_embeddings=model.tie,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        **(_attention(model) if model.mixer == "attention" else _state_space(model)),
    )


def _attention(model: ModelSettings) -> dict[str, Any]:
    sliding = None
    if model.window is not None and model.window_every > 1:
        sliding = tuple(n for n in range(model.layers) if (n + 1) % model.window_every)
    experts = None
    if model.experts:
        experts = Experts(
            model.experts, model.experts_per_token, model.ffn, shared_size=model.shared_expert
        )
    return {
        "intermediate_size": model.ffn,
        "block": model.block,
        "activation": model.activation,
        "gated": model.gated,
        "mlp_bias": model.biases,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden // model.heads,
        "positions": _positions(model),
        "sliding_window": model.window,
        "sliding_layers": sliding,
        "attention_bias": model.biases,
        "output_bias": model.biases,
        "qk_norm": model.qk_norm,
        "attention_softcap": model.attention_softcap,
        "experts": experts,
    }


def _positions(model: ModelSettings) -> Positions:
    if model.positions != "rotary":
        return POSITIONS[model.positions]()
    rope = {"rope_type": "default"} | (model.rope_scaling or {})
    rope |= {"rope_theta": model.rope_theta, "partial_rotary_factor": model.rope_fraction}
    rotary: Rotary = read_rope({"rope_parameters": rope}, "rope_scaling")
    return rotary


def _state_space(model: ModelSettings) -> dict[str, Any]:
    inner = _EXPANSION * model.hidden
    if model.mixer == "mamba":
        space = StateSpace(inner, model.state, rank=-(-model.hidden // 16), bias=model.biases)
    else:
        channels = min(_CHANNELS_PER_HEAD, inner)
        if inner % channels:
            raise CheckpointError(
                f"hidden is {model.hidden}; Mamba-2 needs a multiple of {channels // 2}."
            )
        space = StateSpace(inner, model.state, heads=inner // channels, bias=model.biases)
    return {"mixer": model.mixer, "state_space": space, "intermediate_size": inner}
