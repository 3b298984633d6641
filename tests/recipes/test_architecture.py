"""`[model]`: every choice makes a model that trains, generates and comes back from its files."""

import json
from types import SimpleNamespace

import pytest
import torch

from hone.core.errors import ConfigError
from hone.engine.cache import RowCache
from hone.models import CausalLM, load_model, make_model, save_checkpoint
from hone.recipes.architecture import model_config
from hone.recipes.settings import ModelSettings

TOKENIZER = SimpleNamespace(vocab_size=50, bos_id=1, eos_id=2, pad_id=0)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# Choices, and the family whose files can say them.
CHOICES = [
    ({}, "llama"),
    ({"kv_heads": 1, "positions": "alibi"}, "hone"),
    (
        {
            "kv_heads": 4,
            "positions": "learned",
            "norm": "layer",
            "biases": True,
            "gated": False,
            "activation": "gelu_tanh",
        },
        "gpt2",
    ),
    ({"positions": "sinusoidal", "block": "post", "tie": False}, "hone"),
    ({"positions": "buckets"}, "hone"),
    ({"positions": "none", "norm": "rms+1"}, "hone"),
    ({"rope_scaling": YARN, "rope_theta": 500.0}, "llama"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "llama"),
    ({"window": 5}, "mistral"),
    ({"window": 5, "window_every": 2, "block": "sandwich"}, "hone"),
    ({"qk_norm": True}, "qwen3"),
    ({"rope_fraction": 0.5, "block": "parallel", "activation": "relu"}, "hone"),
    ({"mixer": "mamba", "tie": True}, "mamba"),
    ({"mixer": "mamba2", "tie": False}, "mamba2"),
    ({"mixer": "mamba2", "biases": True}, "mamba2"),
    ({"attention_softcap": 20.0, "logit_softcap": 10.0}, "hone"),
    ({"experts": 4}, "mixtral"),
    ({"experts": 4, "experts_per_token": 1, "window": 5, "activation": "gelu"}, "mixtral"),
    ({"experts": 4, "shared_expert": 24}, "qwen2_moe"),
    ({"experts": 3, "shared_expert": 24, "window": 5, "window_every": 2}, "qwen2_moe"),
    ({"experts": 4, "qk_norm": True}, "qwen3_moe"),
    ({"experts": 4, "shared_expert": 24, "qk_norm": True}, "hone"),
    ({"experts": 4, "block": "sandwich", "positions": "alibi"}, "hone"),
]


def settings(choices):
    sizes = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "context": 64}
    return ModelSettings(**(sizes | choices))


@pytest.mark.parametrize(("choices", "family"), CHOICES, ids=lambda value: str(value)[:40])
def test_a_model_of_ones_own(choices, family, tmp_path):
    config = model_config(settings(choices), TOKENIZER)
    assert config.model_type == family
    model = CausalLM(config)
    model.initialise(seed=0)
    losses = train(model)
    assert losses[-1] < 0.7 * losses[0]
    save_checkpoint(tmp_path / "m", model.eval())
    again = load_model(tmp_path / "m")
    assert again.config == config
    ids = torch.arange(3, 33).view(2, 15)
    cache = RowCache(config, 2, torch.float32)
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(again(ids).logits, expected)
        again(ids[:, :9], cache=cache)
        steps = [again(ids[:, n : n + 1], cache=cache).logits for n in range(9, 15)]
    torch.testing.assert_close(torch.cat(steps, 1), expected[:, 9:], atol=1e-4, rtol=1e-4)


def train(model):
    """Learn one small pack by heart."""
    lengths = [9, 14, 6]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (sum(lengths),), generator=generator)
    batch = SimpleNamespace(
        input_ids_N=ids,
        position_ids_N=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_length=max(lengths),
        labels_N=torch.roll(ids, -1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = model.packed_loss(batch) / len(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}}, "beta_fast"),
        ({"rope_fraction": 0.01}, "partial_rotary_factor"),
    ],
)
def test_choices_that_cannot_be_are_one_sentence(choices, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        model_config(settings(choices), TOKENIZER)
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_ones_own_is_one_sentence(tmp_path):
    from hone.core.errors import CheckpointError

    config = model_config(settings({"positions": "alibi"}), TOKENIZER)
    model = CausalLM(config)
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "m", model)
    file = tmp_path / "m" / "config.json"
    good = json.loads(file.read_text())
    for change, expected in (
        ({"positions": {"name": "alibis"}}, "one of rotary, learned"),
        ({"hiden_size": 3}, 'Did you mean "hidden_size"'),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"block": "around"}, "block"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=expected):
            load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"mixer": "mamba", "experts": 4}, "experts means nothing with the mixer mamba"),
        ({"positions": "alibi", "rope_theta": 5.0}, "rope_theta means nothing with the positions"),
        ({"shared_expert": 8}, "shared_expert means nothing"),
    ],
)
def test_choices_that_contradict_one_another_are_refused(choices, expected):
    with pytest.raises(ValueError, match=expected):
        settings(choices)


POST = {"norm": "layer", "biases": True, "gated": False, "activation": "gelu", "block": "post"}


@pytest.mark.parametrize(
    ("head", "choices", "family"),
    [
        ("masked", {"kv_heads": 4, "positions": "learned"} | POST, "bert"),
        ("masked", {}, "hone"),
        (
            "seq2seq",
            {"kv_heads": 4, "positions": "buckets", "gated": False, "activation": "relu"},
            "t5",
        ),
        ("seq2seq", {"encoder_layers": 1}, "hone"),
    ],
)
def test_encoders_and_pairs_come_back_from_their_files(head, choices, family, tmp_path):
    config = model_config(settings(choices), TOKENIZER, head)
    assert config.model_type == family
    model = make_model(config)
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "m", model.eval())
    again = load_model(tmp_path / "m")
    assert again.config == config
    ids = torch.arange(3, 33).view(2, 15)
    arguments = {"decoder_input_ids": ids[:, :5]} if head == "seq2seq" else {}
    with torch.no_grad():
        torch.testing.assert_close(again(ids, **arguments).logits, model(ids, **arguments).logits)


def test_a_recurrence_is_no_encoder():
    with pytest.raises(ConfigError, match="attention"):
        model_config(settings({"mixer": "mamba"}), TOKENIZER, "masked")
