"""What a training pass keeps changes its memory and not one bit of its results."""

import gc
from dataclasses import replace

import pytest
import torch
from small_llama import make_config, make_pack
from torch import nn

from hone.adapters import LoraConfig, add_adapter
from hone.core.errors import ConfigError
from hone.models import ModelConfig, make_model
from hone.models.config import Experts, StateSpace
from hone.models.positions import Buckets, Learned, NoPositions
from hone.models.recompute import Keeper, SparingKeeper
from hone.quant import quantize_nf4_model
from hone.train.memory import measure_peak

MAMBA = StateSpace(inner=64, state=5, rank=3)
MAMBA2 = StateSpace(inner=64, state=8, heads=4, groups=2)
LAYER_NORM = {"norm": "layer", "norm_bias": True, "gated": False, "mlp_bias": True}
BERT = {"block": "post", "causal": False, "activation": "gelu", "positions": Learned()}
T5 = {"positions": Buckets(8, 16), "gated": True, "activation": "gelu_tanh"}
EXPERTS = Experts(count=4, per_token=2, size=24, shared_size=16, balance=0.1, router_z=0.01)


def seq2seq(**changes) -> ModelConfig:
    encoder = make_config(**changes, causal=False)
    return make_config(**changes, encoder=encoder, head="seq2seq", decoder_start_token_id=0)


BODIES = {
    "llama": make_config(tie_word_embeddings=True, num_key_value_heads=4),
    "grouped": make_config(qk_norm=True, attention_bias=True),
    "gemma": make_config(
        block="sandwich", norm="rms+1", activation="gelu_tanh", attention_softcap=5.0,
        logit_softcap=3.0, sliding_window=5, sliding_layers=(0, 2),
    ),
    "gpt": make_config(**LAYER_NORM, block="parallel", activation="gelu"),
    "experts": make_config(experts=EXPERTS, qk_norm=True),
    "mamba": make_config(mixer="mamba", state_space=MAMBA),
    "mamba2": make_config(mixer="mamba2", state_space=MAMBA2),
    "bert": make_config(**LAYER_NORM, **BERT, head="masked", head_bias=True),
    "t5": seq2seq(**T5),
    "bart": seq2seq(**LAYER_NORM, block="post", activation="gelu", positions=NoPositions()),
}  # fmt: skip
MODES = [("selective", 1), ("blocks", 1), ("blocks", 2)]


def make(config: ModelConfig, **changes):
    model = make_model(replace(config, **changes), dtype=torch.float32)
    model.initialise(seed=2)
    return model


def pack_for(model, lengths=(9, 17, 9, 4), seed=5):
    generator = torch.Generator().manual_seed(seed)

    def texts(lengths):
        top = model.config.vocab_size
        return make_pack([torch.randint(top, (n,), generator=generator).tolist() for n in lengths])

    pack = texts(lengths)
    source = texts([length + 3 for length in lengths])
    pack.source_ids_M, pack.source_cu_seqlens = source.input_ids_N, source.cu_seqlens
    return pack


def losses_and_gradients(model, pack):
    model.zero_grad(set_to_none=True)
    loss = model.packed_loss(pack)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


@pytest.mark.parametrize(
    ("body", "dtype"),
    [*((body, torch.float32) for body in BODIES), ("gemma", torch.bfloat16)],
)
def test_every_bit_stays_the_same(body, dtype):
    model = make(BODIES[body]).to(dtype)
    for lengths in ((7, 11, 3), (8, 8)):
        pack = pack_for(model, lengths)
        model.set_activation_checkpointing("none")
        expected = losses_and_gradients(model, pack)
        assert expected[1]
        for mode, every in MODES:
            model.set_activation_checkpointing(mode, every)
            assert_same(losses_and_gradients(model, pack), expected)


@pytest.mark.parametrize("mode", ["selective", "blocks"])
@pytest.mark.parametrize("body", ["llama", "experts", "mamba", "t5"])
def test_with_most_weights_frozen(body, mode):
    """As with adapters: what no gradient needs is not asked for, and the rest stays right."""
    model = make(BODIES[body])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".1." in name and "norm" not in name)
    pack = pack_for(model)
    expected = losses_and_gradients(model, pack)
    assert expected[1]
    model.set_activation_checkpointing(mode)
    assert_same(losses_and_gradients(model, pack), expected)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("body", ["llama", "gemma", "mamba2", "t5"])
@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"dora": True}])
def test_with_adapters_on_float_and_quantized_bases(body, quantized, options):
    model = make(BODIES[body])
    if quantized:
        quantize_nf4_model(model)
    add_adapter(model, LoraConfig(r=3, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    pack = pack_for(model.train())
    torch.manual_seed(3)
    expected = losses_and_gradients(model, pack)
    assert expected[1]
    for mode, every in MODES:
        model.set_activation_checkpointing(mode, every)
        torch.manual_seed(3)
        assert_same(losses_and_gradients(model, pack), expected)


def peaks(config, lengths, modes):
    """Bytes of a forward and a backward pass above what the model holds."""
    if config.encoder is not None:
        config = replace(config, encoder=replace(config.encoder, num_hidden_layers=6))
    model = make(config, num_hidden_layers=6)
    pack = pack_for(model, lengths)
    for mode, every in modes:
        model.set_activation_checkpointing(mode, every)
        model.zero_grad(set_to_none=True)
        peak = measure_peak(lambda: model.packed_loss(pack).backward())
        gradients = sum(p.grad.nbytes for p in model.parameters())
        assert peak.held == pytest.approx(gradients, rel=0.01)  # nothing else outlives the pass
        yield peak.bytes


def test_memory_falls_from_mode_to_mode():
    modes = [("none", 1), ("selective", 1), ("blocks", 3), ("blocks", 2), ("blocks", 1)]
    none, selective, threes, twos, ones = peaks(BODIES["llama"], (60,) * 18, modes)
    assert ones < twos < threes < selective < none
    assert ones < 0.35 * none
    assert selective < 0.75 * none


@pytest.mark.parametrize("body", ["grouped", "experts", "mamba", "mamba2", "bert", "t5"])
def test_memory_falls_in_every_body(body):
    modes = [("none", 1), ("selective", 1), ("blocks", 1)]
    none, selective, ones = peaks(BODIES[body], (40, 40), modes)
    assert selective < 0.85 * none
    assert ones < 0.6 * none


def test_nothing_is_kept_by_a_pass_without_a_backward_pass():
    model = make(BODIES["llama"])
    pack = pack_for(model, (64, 64))
    for mode in ("none", "selective", "blocks"):
        model.set_activation_checkpointing(mode)
        assert measure_peak(lambda: float(model.packed_loss(pack).detach())).held == 0
        gc.collect()


def test_inference_is_left_alone(monkeypatch):
    model = make(BODIES["llama"])
    ids = torch.randint(0, 61, (2, 7))
    with torch.no_grad():
        expected = model(ids).logits
        for mode, every in MODES:
            model.set_activation_checkpointing(mode, every)
            with monkeypatch.context() as patch:
                patch.setattr(SparingKeeper, "__init__", None)
                assert torch.equal(model(ids).logits, expected)


def test_hidden_states_are_all_there():
    model = make(BODIES["experts"])
    ids = torch.randint(0, 61, (2, 7))
    expected = model(ids, output_hidden_states=True).hidden_states
    for mode, every in MODES:
        model.set_activation_checkpointing(mode, every)
        states = model(ids, output_hidden_states=True).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))


class Dropping(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.runs = inner, 0

    def forward(self, x):
        self.runs += 1
        return nn.functional.dropout(self.inner(x), 0.5)


@pytest.mark.parametrize("mode", ["selective", "blocks"])
def test_random_numbers_are_drawn_as_they_were(mode):
    model = make(BODIES["llama"])
    for layer in model.model.layers:
        layer.mlp.down_proj = Dropping(layer.mlp.down_proj)
    pack = pack_for(model)
    torch.manual_seed(3)
    expected = losses_and_gradients(model, pack)
    after = torch.rand(1)
    model.set_activation_checkpointing(mode)
    torch.manual_seed(3)
    assert_same(losses_and_gradients(model, pack), expected)
    assert torch.equal(torch.rand(1), after)
    runs = [layer.mlp.down_proj.runs for layer in model.model.layers]
    assert runs == [3 if mode == "blocks" else 2] * 3


@pytest.mark.parametrize("body", ["llama", "mamba2", "experts"])
@pytest.mark.parametrize("mode", ["none", "selective", "blocks"])
def test_what_waits_elsewhere_comes_back_the_same(monkeypatch, mode, body):
    """The way to the host and back, walked on a CPU."""
    monkeypatch.setattr("hone.models.recompute._LEAST_OFFLOADED", 1)
    made, model = [], make(BODIES[body])
    pack = pack_for(model)
    expected = losses_and_gradients(model, pack)

    def keeper(self, weights, device):
        made.append(SparingKeeper(weights, offload=True))
        return made[-1]

    monkeypatch.setattr("hone.models.recompute.Recomputation.keeper", keeper)
    copies = []
    to_host = SparingKeeper._to_host
    monkeypatch.setattr(
        SparingKeeper, "_to_host", lambda self, x: copies.append(x.shape) or to_host(self, x)
    )
    model.set_activation_checkpointing(mode)
    assert_same(losses_and_gradients(model, pack), expected)
    assert copies
    assert not any(len(shape) == 2 and shape[0] == 61 for shape in copies)  # no weight travels


def test_offload_on_a_cpu_says_that_it_does_nothing():
    model = make(BODIES["llama"])
    with pytest.warns(UserWarning, match="does nothing on a CPU"):
        model.set_activation_checkpointing("none", offload=True)
    assert type(model.model.recomputation.keeper([], torch.device("cpu"))) is Keeper


@pytest.mark.smoke
def test_settings_that_make_no_sense_are_refused():
    model = make(BODIES["llama"])
    with pytest.raises(ConfigError, match="one of none, blocks, selective, not 'all'"):
        model.set_activation_checkpointing("all")
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        model.set_activation_checkpointing("blocks", 0)
