import tempfile
from dataclasses import replace

import pytest
import torch
from tiny import tiny_batches, tiny_model

from hone.core.errors import ConfigError
from hone.train import TrainConfig, train
from hone.train.freezing import frozen

CONFIG = TrainConfig(steps=3, warmup_steps=1, precision="fp32")


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.smoke
def test_frozen_weights_stay_and_are_free_again_afterwards(tmp_path):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = replace(CONFIG, freeze=("model.layers.0.*", "*embed*"))
    train(model, tiny_batches(), config, tmp_path)
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen_ones = {name for name in before if ".layers.0." in name or "embed" in name}
    assert same == frozen_ones
    assert 0 < len(frozen_ones) < len(before)
    assert trainable(model) == set(before)
    # Their gradients, moments and masters are in no checkpoint.
    from safetensors.torch import load_file

    state = load_file(tmp_path / "checkpoints" / "step-00000003" / "state.safetensors")
    assert not [name for name in state for found in frozen_ones if name.endswith(found)]


def test_a_tied_weight_goes_by_each_of_its_names():
    model = tiny_model(tied=True)
    with frozen(model, ["lm_head.weight"]):
        assert not model.embedding.weight.requires_grad
    assert model.embedding.weight.requires_grad


def test_what_was_frozen_before_stays_so(tmp_path):
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    with frozen(model, ["model.norm.*"]):
        pass
    assert not model.model.norm.weight.requires_grad


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "model.layers.7.*",
            r'"model\.layers\.7\.\*", which fits no weight.*"model\.layers\.[01]\.\*"',
        ),
        ("model.norm.wieght", r'Did you mean "model\.norm\.weight"'),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(pattern, message):
    model = tiny_model()
    everything = trainable(model)
    with (
        pytest.raises(ConfigError, match=message),
        tempfile.TemporaryDirectory() as folder,
    ):
        train(model, tiny_batches(), replace(CONFIG, freeze=("*norm*", pattern)), folder)
    assert trainable(model) == everything


def test_a_single_pattern_is_no_list_of_its_letters():
    with pytest.raises(ConfigError, match=r"freeze must be a list of patterns, .* not 'model\.\*'"):
        TrainConfig(steps=1, freeze="model.*")


def test_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to train"):
        train(tiny_model(), tiny_batches(), replace(CONFIG, freeze=("*",)), tmp_path)
