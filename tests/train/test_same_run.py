"""A run goes on only as the run that it was."""

from dataclasses import replace

import pytest
from tiny import tiny_batches, tiny_model

from hone.adapters import LoraConfig, add_adapter
from hone.core.errors import ConfigError
from hone.quant import quantize_nf4_model
from hone.train import SummedLoss, TrainConfig, train

CONFIG = TrainConfig(
    steps=12, warmup_steps=2, log_every=4, checkpoint_every=5, precision="fp32", micro_batches=2
)


def test_other_settings_data_or_weights_are_refused_by_name(tmp_path):
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.003 and is 0\.5.*--fresh"):
        train(tiny_model(), tiny_batches(), replace(CONFIG, learning_rate=0.5), tmp_path)
    with pytest.raises(ConfigError, match="the training data or its order changed"):
        train(tiny_model(), tiny_batches(seed=1), CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r": the shape of the model changed\."):
        train(tiny_model(layers=1), tiny_batches(), CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r": the weights to start from changed\."):
        train(tiny_model(seed=1), tiny_batches(), CONFIG, tmp_path)
    # How often to write and when to give up has no effect on the weights.
    config = replace(CONFIG, checkpoint_every=3, log_every=1, keep_last=5, max_bad_steps=99)
    assert train(tiny_model(), tiny_batches(), config, tmp_path).resumed_from == 12


def test_every_setting_that_changes_the_weights_is_looked_at(tmp_path):
    config = replace(CONFIG, steps=2)
    train(tiny_model(), tiny_batches(), config, tmp_path)
    for name, value in (("seed", 1), ("ema", 0.5), ("optimizer", "adamw"), ("grad_clip", 0.5)):
        with pytest.raises(ConfigError, match=f"settings: {name} was .* and is .*{value}"):
            train(tiny_model(), tiny_batches(), replace(config, **{name: value}), tmp_path)


def tiny_adapter(alpha=8, dropout=0.0):
    model = tiny_model(hidden=64)
    quantize_nf4_model(model)
    add_adapter(model, LoraConfig(r=2, alpha=alpha, dropout=dropout))
    return model


def with_other_codes():
    model = tiny_adapter()
    model.get_buffer("model.layers.0.mlp.up_proj.base.weight").add_(1)
    return model


def partly_frozen():
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    return model


def with_another_norm():
    model = tiny_model()
    model.config = replace(model.config, norm_eps=0.1)
    return model


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (tiny_adapter, with_other_codes, "the weights to start from"),
        (tiny_adapter, lambda: tiny_adapter(alpha=16), "the settings of the model or of its adap"),
        (tiny_adapter, lambda: tiny_adapter(dropout=0.5), "the settings of the model or of its"),
        (tiny_model, with_another_norm, "the settings of the model or of its adapter"),
        (tiny_model, partly_frozen, "which weights are trained"),
        (partly_frozen, tiny_model, "which weights are trained"),
    ],
)
def test_another_base_adapter_or_share_that_is_trained_is_refused(tmp_path, before, now, message):
    config = replace(CONFIG, steps=2)
    train(before(), tiny_batches(), config, tmp_path)
    assert train(before(), tiny_batches(), config, tmp_path).resumed_from == 2
    with pytest.raises(ConfigError, match=f"settings: {message}"):
        train(now(), tiny_batches(), config, tmp_path)


def test_another_objective_is_refused(tmp_path):
    class Halved(SummedLoss):
        identity = {"objective": "half the loss", "share": 0.5}

    config = replace(CONFIG, steps=2)
    train(tiny_model(), tiny_batches(), config, tmp_path, objective=Halved())
    with pytest.raises(ConfigError, match=r"objective was 'half the loss' and is 'summed loss'"):
        train(tiny_model(), tiny_batches(), config, tmp_path)
    other = Halved()
    other.identity = {**other.identity, "share": 0.25}
    with pytest.raises(ConfigError, match=r"settings: share was 0\.5 and is 0\.25\. Restore"):
        train(tiny_model(), tiny_batches(), config, tmp_path, objective=other)
