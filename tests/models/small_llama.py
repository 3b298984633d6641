"""Small random models and packs for the tests of this room."""

from types import SimpleNamespace

import torch

from hone.models import CausalLM, ModelConfig, Rotary

# Odd sizes on purpose: a head size that is no power of two, heads that do not fill the model.
SHAPES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 1, "head_dim": 6},
    "biased": {
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "positions": Rotary(theta=500.0),
    },
}


def make_config(**changes) -> ModelConfig:
    values = {
        "vocab_size": 61,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "norm_eps": 1e-5,
        "initializer_range": 0.2,
    }
    return ModelConfig(**(values | changes))


def make_model(**changes) -> CausalLM:
    model = CausalLM(make_config(**changes), dtype=torch.float32)
    model.initialise(seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()))
    return model.eval()


def make_pack(sequences: list[list[int]]) -> SimpleNamespace:
    """A training batch of whole sequences, every token but the first a label."""
    lengths = [len(sequence) for sequence in sequences]
    labels = [label for sequence in sequences for label in [*sequence[1:], -100]]
    return SimpleNamespace(
        input_ids_N=torch.tensor([token for sequence in sequences for token in sequence]),
        position_ids_N=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_length=max(lengths),
        labels_N=torch.tensor(labels),
    )
