import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hone
from hone.core.errors import ConfigError
from hone.engine.invariance import safe_row_counts
from hone.models import CausalLM, load_model
from hone.quant import Int8Linear, int8_activations, quantize_checkpoint, quantize_rows
from hone.quant.int8 import int8_linear
from hone.quant.int8_activations import (
    int8_activations_linear,
    int8_activations_reference,
    quantize_tokens,
    use_int8_activations,
)

SIZES = {"rows": st.integers(1, 40), "inputs": st.integers(1, 90), "seed": st.integers(0, 999)}


def random(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(**SIZES, exponent=st.integers(-30, 30))
def test_no_activation_is_off_by_more_than_half_a_step(rows, inputs, seed, exponent):
    (x_MK,) = random(seed, (rows, inputs))
    x_MK = x_MK * 2.0**exponent
    codes, scale = quantize_tokens(x_MK)
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= 127
    assert ((codes * scale - x_MK).abs() <= scale * 0.5001).all()


@settings(max_examples=60, deadline=None)
@given(**SIZES, outputs=st.integers(1, 40), bias=st.booleans())
def test_the_product_is_its_reference_to_the_bit(rows, inputs, seed, outputs, bias):
    x_MK, weight_NK, bias_N = random(seed, (rows, inputs), (outputs, inputs), (outputs,))
    codes, scale = quantize_rows(weight_NK, torch.bfloat16)
    given_bias = bias_N if bias else None
    for dtype in (torch.float32, torch.bfloat16):
        found = int8_activations_linear(x_MK.to(dtype), codes, scale, given_bias)
        assert found.dtype == dtype
        assert found.equal(int8_activations_reference(x_MK.to(dtype), codes, scale, given_bias))


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_the_error_is_bounded_by_the_scales(rows, inputs, seed):
    x_MK, weight_NK = random(seed, (rows, inputs), (7, inputs))
    codes, scale_N1 = quantize_rows(weight_NK, torch.float32)
    found = int8_activations_linear(x_MK, codes, scale_N1).double()
    wide_NK = codes.double() * scale_N1
    # Every activation is off by at most half its row's step, whatever the weights.
    step_M1 = x_MK.abs().amax(1, keepdim=True).double() / 127
    bound_MN = 0.5001 * step_M1 * wide_NK.abs().sum(1) + 1e-5 * found.abs() + 1e-30
    assert ((found - x_MK.double() @ wide_NK.t()).abs() <= bound_MN).all()


@settings(max_examples=40, deadline=None)
@given(**SIZES, cut=st.integers(1, 39))
def test_the_bits_of_a_row_do_not_depend_on_the_others(rows, inputs, seed, cut):
    x_MK, weight_NK = random(seed, (rows, inputs), (33, inputs))
    codes, scale = quantize_rows(weight_NK, torch.float32)
    whole = int8_activations_linear(x_MK, codes, scale)
    assert int8_activations_linear(x_MK[:cut], codes, scale).equal(whole[:cut])


@pytest.mark.smoke
def test_zeros_stay_zero_and_what_is_not_finite_shows():
    (weight_NK,) = random(0, (8, 64))
    codes, scale = quantize_rows(weight_NK, torch.float32)
    x_MK = torch.zeros(4, 64)
    x_MK[1, 3], x_MK[2, 5], x_MK[3] = math.nan, math.inf, 1e-42
    out = int8_activations_linear(x_MK, codes, scale)
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()
    assert (out[3] == 0).all()


def test_the_largest_sums_fit():
    inputs = int8_activations.MOST_INPUTS
    weight_NK = torch.full((1, inputs), 127, dtype=torch.int8)
    one = torch.ones(1, 1)
    found = int8_activations_linear(torch.ones(1, inputs), weight_NK, one)
    assert found.item() == pytest.approx(127 * inputs, rel=1e-6)
    assert 127 * 127 * (inputs + 1) > 2**31 - 1


@pytest.fixture
def quantized(checkpoint, tmp_path):
    quantize_checkpoint(checkpoint, tmp_path / "int8")
    return tmp_path / "int8"


def layers(model) -> list[Int8Linear]:
    return [module for module in model.modules() if isinstance(module, Int8Linear)]


def test_a_model_is_told_once_and_can_be_told_otherwise(quantized):
    model = load_model(quantized, "float32")
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        plain = model(ids).logits
        assert use_int8_activations(model, True)
        assert {layer.product for layer in layers(model)} == {int8_activations_linear}
        rounded = model(ids).logits
        assert not use_int8_activations(model, False)
        assert model(ids).logits.equal(plain)
    assert not rounded.equal(plain)
    assert (rounded - plain).norm() < 0.1 * plain.norm()


def test_load_takes_the_choice(quantized, checkpoint):
    lm = hone.load(quantized, int8_activations=True, exact=True)
    assert {layer.product for layer in layers(lm.model)} == {int8_activations_linear}
    # Whole numbers need no padding; the embedding's product is float, and may.
    model = lm.model
    if not model.config.tie_word_embeddings:
        assert safe_row_counts(model) is not None
    params = hone.SamplingParams(max_tokens=8)
    prompts = [list(range(3, 3 + n)) for n in (4, 9, 17)]
    together = lm.generate(prompts, params)
    alone = [lm.generate([prompt], params)[0] for prompt in prompts]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert {layer.product for layer in layers(hone.load(quantized).model)} == {int8_linear}
    with pytest.raises(ConfigError, match="no int8 weights"):
        hone.load(checkpoint, int8_activations=True)
    hone.load(checkpoint, int8_activations="auto")
    with pytest.raises(ConfigError, match="'yes'"):
        hone.load(quantized, int8_activations="yes")


@pytest.mark.parametrize("seconds", [0.5, 0.97, 2.0])
def test_auto_takes_it_only_where_it_is_faster(quantized, monkeypatch, seconds):
    model = load_model(quantized, "float32")

    def timed(work):
        work()  # what is measured can be computed
        return seconds if work.func is int8_activations_linear else 1.0

    monkeypatch.setattr(int8_activations, "_seconds", timed)
    assert use_int8_activations(model, "auto") is (seconds == 0.5)
    wanted = int8_activations_linear if seconds == 0.5 else int8_linear
    assert {layer.product for layer in layers(model)} == {wanted}


@pytest.mark.parametrize(("prompt", "step", "used"), [(2.0, 1.1, True), (2.0, 1.8, False)])
def test_auto_weighs_prompts_and_steps(quantized, monkeypatch, prompt, step, used):
    """Prompts are read faster by ``prompt``, and steps take ``step`` times as long."""
    model = load_model(quantized, "float32")

    def timed(work):
        rows = len(work.args[0])
        plain = 10.0 if rows > 8 else 0.4
        if work.func is not int8_activations_linear:
            return plain
        return plain / prompt if rows > 8 else plain * step

    monkeypatch.setattr(int8_activations, "_seconds", timed)
    assert use_int8_activations(model, "auto") is used


@pytest.mark.parametrize("checkpoint", [False], ids=["untied"], indirect=True)
def test_a_trained_model_hardly_changes(checkpoint, tmp_path):
    """Perplexity of a model that knows something: at most 1% more than with int8 weights only."""
    model = load_model(checkpoint, "float32")
    assert isinstance(model, CausalLM)
    generator = torch.Generator().manual_seed(0)
    # Each token follows from the last one, but for one in ten.
    follows = torch.randperm(280, generator=generator)
    text = [5]
    noise = torch.rand(4200, generator=generator) < 0.1
    other = torch.randint(0, 280, (4200,), generator=generator)
    for place in range(4199):
        text.append(int(other[place] if noise[place] else follows[text[-1]]))
    ids_BT = torch.tensor(text[:4160]).view(-1, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def loss(some, of) -> torch.Tensor:
        logits = of(some[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten())

    for step in range(60):
        batch = ids_BT[:48][step * 8 % 48 :][:8]
        optimizer.zero_grad()
        loss(batch, model).backward()
        optimizer.step()
    hone.models.save_checkpoint(tmp_path / "trained", model, None)
    quantize_checkpoint(tmp_path / "trained", tmp_path / "int8")
    small = load_model(tmp_path / "int8", "float32")
    with torch.inference_mode():
        known = loss(ids_BT[48:], small).exp().item()
        use_int8_activations(small, True)
        rounded = loss(ids_BT[48:], small).exp().item()
    assert known < 40  # of 280: it has learnt
    assert rounded == pytest.approx(known, rel=0.01)
    assert rounded != known


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (33, 50), (1, 1)])
def test_a_gpu_computes_the_same_bits(rows, outputs, inputs):
    x_MK, weight_NK = random(0, (rows, inputs), (outputs, inputs))
    codes, scale = quantize_rows(weight_NK, torch.float32)
    found = int8_activations_linear(x_MK.cuda(), codes.cuda(), scale.cuda())
    assert found.cpu().equal(int8_activations_reference(x_MK, codes, scale))
