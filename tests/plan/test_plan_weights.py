import pytest
from plan_models import FAMILIES, config_of

from hone.core.errors import ConfigError
from hone.models.config import HEADS
from hone.models.heads import fits, make_model
from hone.models.meta import without_memory
from hone.plan import Lora, TrainJob, count_parameters
from hone.plan.flops import active_weights
from hone.plan.trained import Numbers, Use
from hone.plan.weights import weights_of


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_every_family_with_every_head(family):
    config = config_of(family)
    for head in HEADS:
        if not fits(config, head):
            continue
        with without_memory():
            real = {n: tuple(p.shape) for n, p in make_model(config, head).named_parameters()}
        assert {w.name: w.shape for w in weights_of(config, head)} == real, head
    assert count_parameters(config) == config.parameter_count


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_4_bit_layers_are_those_that_hone_makes(family):
    from hone.adapters import LoraConfig, add_adapter
    from hone.quant import Nf4Linear, quantize_nf4_model

    config = config_of(family, initializer_range=0.02)
    model = make_model(config)
    model.initialise(0)
    add_adapter(model, LoraConfig(r=4))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    numbers = Numbers.of(config, Use("qlora", "fp32", (), Lora(rank=4)))
    assert numbers.gradient_numbers == trained

    model = make_model(config)
    model.initialise(0)
    quantize_nf4_model(model)
    layers = {n for n, module in model.named_modules() if isinstance(module, Nf4Linear)}
    assert {name.removesuffix(".weight") for name in numbers.quantized} == layers


def test_adapters_of_some_layers_by_the_names_in_files():
    config = config_of("gpt2")
    numbers = Numbers.of(config, Use("lora", "fp32", (), Lora(rank=2, targets=("c_attn",))))
    # One A that queries, keys and values share, and a B for each.
    assert numbers.gradient_numbers == 3 * 2 * (64 + 3 * 64)
    with pytest.raises(ConfigError, match=r"matches the targets c_atn.*c_attn"):
        Numbers.of(config, Use("lora", "fp32", (), Lora(targets=("c_atn",))))


def test_frozen_weights_are_not_trained():
    config = config_of("llama")
    job = TrainJob(lengths=(8,), freeze=("model.layers.0.*", "model.embed_tokens.weight"))
    numbers = Numbers.of(config, Use.of(job))
    frozen = {w.name for w in weights_of(config)} - numbers.trained
    assert "model.embed_tokens.weight" in frozen
    assert "model.layers.0.mlp.up_proj.weight" in frozen
    assert "model.layers.1.mlp.up_proj.weight" not in frozen


def test_a_token_uses_two_of_four_experts_and_no_embedding():
    config = config_of("mixtral")
    experts = sum(w.count for w in weights_of(config) if w.kind == "experts")
    outside = 1200 * 64  # the embedding is looked up
    norms = sum(w.count for w in weights_of(config) if w.kind == "other")
    expected = count_parameters(config) - experts // 2 - outside - norms
    assert active_weights(config) == expected
