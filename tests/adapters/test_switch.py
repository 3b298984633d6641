"""Adapters on one model: several, switched, merged, trained."""

import copy

import pytest
import torch

from hone.adapters import (
    LoraConfig,
    add_adapter,
    load_adapter,
    merge,
    remove_adapters,
    save_adapter,
    set_adapter,
    unmerge,
)
from hone.core.errors import ConfigError
from hone.kernels.linear import joined
from hone.models import CausalLM, ModelConfig
from hone.quant import Int8Linear, quantize_nf4_model
from hone.quant.int8 import quantize_rows

IDS = torch.arange(26).view(2, 13)


def make_model(**changes):
    sizes = {"max_position_embeddings": 64} | changes
    model = CausalLM(ModelConfig(50, 64, 96, 2, 4, 2, **sizes))
    model.initialise(seed=2)
    model.adjoin_weights()
    return model.eval()


@torch.no_grad()
def perturb(adapter, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in adapter.weights():
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


@torch.no_grad()
def scores(model):
    return model(IDS).logits


def int8(model):
    """All layers but the last in int8."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            quantized = Int8Linear(layer.in_features, layer.out_features, False)
            quantized.weight, quantized.weight_scale = quantize_rows(layer.weight, torch.float32)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized)
    return model


def nf4(model):
    quantize_nf4_model(model)
    return model


@pytest.mark.smoke
def test_several_adapters_share_one_base_and_none_leaves_it_as_it_was():
    model = make_model()
    modules = dict(model.named_modules())
    weights = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    plain, found = scores(model), {}
    for seed, (name, config) in enumerate(
        {
            "하나": LoraConfig(r=2),
            "two": LoraConfig(r=5, targets=["q_proj", "down_proj"], dora=True, rslora=True),
            "three": LoraConfig(targets=["v_proj"], modules_to_save=["lm_head"]),
        }.items()
    ):
        perturb(add_adapter(model, config, name), seed)
        found[name] = scores(model)
    for name in ("two", "하나", None, "three", "하나"):
        set_adapter(model, name)
        expected = plain if name is None else found[name]
        assert torch.equal(scores(model), expected), name
    set_adapter(model, None)
    assert dict(model.named_modules()) == modules
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == weights
    assert len({*map(tuple, (x.flatten().tolist() for x in found.values()))}) == 3
    with pytest.raises(ConfigError, match="하나"):
        set_adapter(model, "한나")
    remove_adapters(model)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", [lambda model: model, int8, nf4], ids=["float", "int8", "nf4"])
@pytest.mark.filterwarnings("ignore:The base is quantized")
def test_merged_equals_beside_and_unmerged_every_bit(kind, dora):
    model = kind(make_model())
    perturb(add_adapter(model, LoraConfig(r=3, dora=dora)), 4)
    beside = scores(model)
    merge(model)
    torch.testing.assert_close(scores(model), beside, atol=2e-5, rtol=1e-4)
    assert not any(hasattr(module, "dequantize") for module in model.modules())
    block = model.model.layers[0].self_attn
    together = [block.q_proj.weight, block.k_proj.weight, block.v_proj.weight]
    assert joined(together).data_ptr() == together[0].data_ptr()
    with pytest.raises(ConfigError, match="merged already"):
        merge(model)
    unmerge(model)
    assert torch.equal(scores(model), beside)


def test_merging_into_a_quantized_base_is_said():
    model = nf4(make_model())
    perturb(add_adapter(model, LoraConfig(targets=["q_proj"])), 1)
    with pytest.warns(UserWarning, match="14 layers were dequantized to float32"):
        merge(model)
    assert model.config.quantization_config is None
    unmerge(model)
    assert model.config.quantization_config is not None


@pytest.mark.parametrize("kind", [lambda model: model, int8, nf4], ids=["float", "int8", "nf4"])
def test_gradients_are_those_of_autograd(kind):
    """Against the same adapters written out with plain operations."""
    model = kind(make_model())
    adapter = add_adapter(model, LoraConfig(r=3, alpha=7))
    perturb(adapter, 5)
    trained = list(adapter.weights())
    model(IDS).logits.square().sum().backward()
    found = [weight.grad.clone() for weight in trained]
    assert all(w.grad is None for w in model.parameters() if not w.requires_grad)

    def plain(self, x):
        update = (x @ self.lora_A.t()) @ self.lora_B.t()
        return self.base(x) + self.scale * update

    written = {}
    for module in model.modules():
        if hasattr(module, "lora_A"):
            written[type(module)] = module
    cls = next(iter(written))
    forward, joint = cls.forward, cls.joint_product
    try:
        cls.forward = plain
        del cls.joint_product
        for weight in trained:
            weight.grad = None
        model(IDS).logits.square().sum().backward()
    finally:
        cls.forward, cls.joint_product = forward, staticmethod(joint)
    for ours, weight in zip(found, trained, strict=True):
        torch.testing.assert_close(ours, weight.grad, atol=1e-3, rtol=1e-4)


def test_checkpointed_activations_and_dropout_give_the_same_gradients():
    results = []
    for mode in ("none", "blocks"):
        model = make_model()
        adapter = add_adapter(model, LoraConfig(r=3, dropout=0.3))
        perturb(adapter, 6)
        model.set_activation_checkpointing(mode)
        model.train()
        torch.manual_seed(0)
        model(IDS).logits.square().sum().backward()
        results.append([weight.grad for weight in adapter.weights()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_dropout_is_off_outside_of_training():
    model = make_model()
    perturb(add_adapter(model, LoraConfig(dropout=0.5)), 7)
    assert torch.equal(scores(model), scores(model))
    model.train()
    assert not torch.equal(scores(model), scores(model))


def test_an_adapter_follows_its_model_to_another_dtype(tmp_path):
    model = make_model()
    perturb(add_adapter(model, LoraConfig(modules_to_save=["lm_head"]), "one"), 8)
    expected = scores(model)
    save_adapter(model, tmp_path / "one")
    set_adapter(model, None)
    model.bfloat16()
    set_adapter(model, "one")
    found = scores(model)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    other = make_model().bfloat16()
    load_adapter(other, tmp_path / "one")
    assert next(iter(w for n, w in other.named_parameters() if "lora_A" in n)).dtype == (
        torch.float32
    )
    torch.testing.assert_close(scores(other), found, atol=0.02, rtol=0.05)


def test_a_copy_of_a_model_has_adapters_of_its_own():
    model = make_model()
    perturb(add_adapter(model, LoraConfig()), 9)
    adapted = scores(model)
    twin = copy.deepcopy(model)
    set_adapter(model, None)
    assert torch.equal(scores(twin), adapted)
    set_adapter(twin, None)
    assert torch.equal(scores(twin), scores(model))


def test_what_makes_no_sense_is_one_sentence():
    model = make_model()
    with pytest.raises(ConfigError, match="No adapter is in use"):
        merge(model)
    add_adapter(model, LoraConfig())
    with pytest.raises(ConfigError, match="already"):
        add_adapter(model, LoraConfig())
    with pytest.raises(ConfigError, match="Merge the adapter first"):
        remove_adapters(model)
