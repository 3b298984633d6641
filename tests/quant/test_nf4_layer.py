import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from hone.core.errors import CheckpointError
from hone.models import load_model, make_model
from hone.models.summary import summarise
from hone.models.weights import quantized_layers
from hone.quant import Nf4Linear, nf4_footprint, quantize_nf4_model

IDS = torch.tensor([[1, 7, 30, 200, 5, 9, 11, 250]])


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(128, 40, True), (50, 33, False)])
def test_the_layer_stands_for_the_linear_layer(inputs, outputs, bias, double):
    linear = nn.Linear(inputs, outputs, bias=bias)
    layer = Nf4Linear.of(linear, double)
    x = torch.randn(2, 5, inputs, requires_grad=True)
    expected = nn.functional.linear(x, layer.dequantize(), linear.bias)
    torch.testing.assert_close(layer(x), expected)
    assert not list(layer.parameters())
    assert (layer.dequantize() - linear.weight).norm() / linear.weight.norm() < 0.12
    flat = x.detach().flatten(0, 1)
    assert torch.equal(layer.base_forward(flat), layer(flat))
    grad = torch.randn(10, outputs)
    torch.testing.assert_close(layer.base_backward(grad), grad @ layer.dequantize())


@pytest.mark.parametrize("double", [True, False])
def test_constants_stay_exact_in_another_dtype(double):
    layer = Nf4Linear.of(nn.Linear(128, 16), double)
    short = copy.deepcopy(layer).to(torch.bfloat16)
    assert (short.weight_dtype, short.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(short.dequantize(torch.float32), layer.dequantize())
    assert short(torch.ones(1, 128, dtype=torch.bfloat16)).dtype == torch.bfloat16
    other = Nf4Linear(128, 16, True, double=double)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dequantize(), layer.dequantize())


def test_a_weight_with_nan_is_refused(checkpoint):
    model = load_model(checkpoint)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("inf")
    with pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.up_proj': .* NaN or infinity"):
        quantize_nf4_model(model)


@pytest.mark.smoke
def test_a_model_is_quantized_in_place(checkpoint):
    model = load_model(checkpoint, "float32")
    original = {name: layer.weight.detach() for name, layer in quantized_layers(model).items()}
    quantize_nf4_model(model, kept={"model.layers.0.mlp.up_proj"})
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Nf4Linear)}
    assert layers.keys() == original.keys() - {"model.layers.0.mlp.up_proj"}
    # Computes with the weights that its layers tell.
    plain = load_model(checkpoint, "float32")
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = layer.dequantize()
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)
    assert model.config.quantization_config["bnb_4bit_quant_type"] == "nf4"


def test_what_is_left_learns_and_what_is_frozen_does_not(checkpoint):
    model = load_model(checkpoint, "float32")
    quantize_nf4_model(model)
    codes = [m.weight.clone() for m in model.modules() if isinstance(m, Nf4Linear)]
    embedding = model.model.embed_tokens.weight
    losses = []
    optimizer = torch.optim.SGD([embedding], lr=0.5)
    for _ in range(5):
        logits = model(IDS).logits[0]
        loss = nn.functional.cross_entropy(logits[:-1], IDS[0, 1:])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert embedding.grad.abs().sum() > 0
        optimizer.step()
    assert losses[-1] < losses[0]
    after = [m.weight for m in model.modules() if isinstance(m, Nf4Linear)]
    assert all(map(torch.equal, codes, after))


def test_the_frozen_base_takes_half_a_byte_per_weight(checkpoint):
    config = replace(
        load_model(checkpoint).config,
        hidden_size=512,
        intermediate_size=1408,
        attention_bias=False,
        output_bias=False,
    )
    model = make_model(config, None, torch.bfloat16)
    model.initialise(seed=0)
    weights = sum(layer.weight.numel() for layer in quantized_layers(model).values())
    float_bytes = sum(tensor.nbytes for tensor in model.parameters())
    quantize_nf4_model(model)
    found = nf4_footprint(model)
    assert found.weights == weights
    measured = sum(
        buffer.nbytes
        for layer in model.modules()
        if isinstance(layer, Nf4Linear)
        for buffer in layer.buffers()
    )
    assert measured == found.bytes
    assert found.bytes / found.weights <= 0.53
    assert found.kept_bytes == float_bytes - 2 * weights


def test_the_summary_counts_the_bytes_of_the_layers(checkpoint):
    model = load_model(checkpoint, "bfloat16")
    expected = summarise(model.config).weight_bytes["nf4"]
    quantize_nf4_model(model)
    found = nf4_footprint(model)
    assert expected == found.bytes + found.kept_bytes
