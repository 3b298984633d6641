import math
from typing import get_args

import pytest
import torch
from tiny import tiny_batches, tiny_model
from torch import nn

from hone.adapters import LoraConfig, add_adapter
from hone.adapters.switch import adapters_of
from hone.core.errors import ConfigError
from hone.quant.int8 import Int8Linear, quantize_rows
from hone.train import TensorBatch, TrainConfig
from hone.train.checkpoints import CheckpointStore
from hone.train.config import OptimizerName
from hone.train.optimizers import Optimizer

NAMES = get_args(OptimizerName)
SIXTEEN = [torch.bfloat16, torch.float16]


def backward(model, step=0):
    batch = tiny_batches().at(step)
    (model.packed_loss(TensorBatch.of(batch)) / batch.n_trained).backward()


def test_adamw_is_torchs_plain_one():
    config = TrainConfig(steps=5, optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    ours, theirs = tiny_model(), tiny_model()
    optimizer = Optimizer(ours, config, torch.float32)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim >= 2]},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        foreach=False,
        fused=False,
    )
    for step in range(3):
        optimizer.clear_gradients()
        backward(ours, step)
        optimizer.step(1.0, step)
        plain.zero_grad()
        backward(theirs, step)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices_only(tied):
    model = tiny_model(tied=tied)
    state = Optimizer(model, TrainConfig(steps=1), torch.float32).state()
    muon = {name.split("/")[1] for name in state if name.startswith("muon.")}
    assert len(muon) == 2 * 7
    assert all("proj" in name for name in muon)
    adamw = {name.split("/")[1] for name in state if name.startswith("adamw.exp_avg/")}
    assert adamw | muon == {name for name, _ in model.named_parameters()}
    assert not adamw & muon
    assert ("lm_head.weight" in adamw) == (not tied)


def test_small_steps_add_up_in_the_masters_of_a_bfloat16_model():
    config = TrainConfig(steps=99, optimizer="adamw", learning_rate=1e-4, weight_decay=0.0)
    model = tiny_model()
    optimizer = Optimizer(model, config, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    weight = model.model.norm.weight
    for step in range(60):
        optimizer.clear_gradients()
        weight.grad = torch.ones_like(weight)
        optimizer.collect_gradients()
        optimizer.step(1.0, step)
    # A step of 1e-4 is below half of bfloat16's spacing under 1; without masters it would vanish.
    assert torch.allclose(optimizer.masters["model.norm.weight"], torch.tensor(1 - 60e-4))
    assert (weight == torch.tensor(1 - 60e-4).bfloat16()).all()
    optimizer.finish()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.allclose(model.model.norm.weight, torch.tensor(1 - 60e-4))


def test_bfloat16_starts_from_the_float32_weights():
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, TrainConfig(steps=1), torch.bfloat16)
    for name, master in optimizer.masters.items():
        assert torch.equal(master, before[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_clipping_scales_the_global_norm():
    model = tiny_model()
    optimizer = Optimizer(model, TrainConfig(steps=1, grad_clip=0.5), torch.float32)
    backward(model)
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert expected > 0.5
    assert optimizer.clip_gradients() == pytest.approx(expected, rel=1e-5)
    assert optimizer.clip_gradients() == pytest.approx(0.5, rel=1e-4)
    optimizer.clear_gradients()
    assert optimizer.clip_gradients() == 0


def test_the_mean_of_the_weights_is_lent_and_taken_back():
    model = tiny_model()
    optimizer = Optimizer(model, TrainConfig(steps=9, ema=0.9), torch.float32)
    history = [model.model.norm.weight.detach().clone()]
    for step in range(4):
        optimizer.clear_gradients()
        backward(model, step)
        optimizer.step(1.0, step)
        history.append(model.model.norm.weight.detach().clone())
    mean = history[0]
    for step, weight in enumerate(history[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    with optimizer.averaged():
        assert torch.allclose(model.model.norm.weight, mean, atol=1e-6)
    assert torch.equal(model.model.norm.weight, history[-1])
    optimizer.finish()
    assert torch.allclose(model.model.norm.weight, mean, atol=1e-6)


def advance(model, optimizer, steps):
    for step in steps:
        optimizer.clear_gradients()
        backward(model, step)
        optimizer.collect_gradients()
        optimizer.clip_gradients()
        optimizer.step(1.0, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_all_there_is(name, dtype, tmp_path):
    config = TrainConfig(steps=9, optimizer=name, ema=0.5)
    model = tiny_model(hidden=64)  # large enough for 8 bits
    optimizer = Optimizer(model, config, dtype)
    advance(model, optimizer, range(3))
    store = CheckpointStore(tmp_path, 1)
    store.save(3, optimizer.state(), {})
    advance(model, optimizer, range(3, 6))

    other = tiny_model(seed=5, hidden=64)
    restored = Optimizer(other, config, dtype)
    restored.load_state(store.latest().tensors())
    advance(other, restored, range(3, 6))
    for key, value in optimizer.state().items():
        assert torch.equal(value, restored.state()[key]), key
    for end in (Optimizer.publish, Optimizer.finish):
        end(optimizer)
        end(restored)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_decoupled_and_for_matrices_only(name):
    def after(decay):
        model = tiny_model(hidden=64)
        config = TrainConfig(
            steps=9,
            optimizer=name,
            weight_decay=decay,
            learning_rate=0.01,
            muon_learning_rate=0.01,
        )
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer = Optimizer(model, config, torch.float32)
        advance(model, optimizer, range(1))
        return before, dict(model.named_parameters())

    before, plain = after(0.0)
    _, decayed = after(0.5)
    for key, weight in before.items():
        shrunk = 0.01 * 0.5 * weight if weight.ndim >= 2 else 0.0
        assert torch.allclose(decayed[key], plain[key] - shrunk, atol=1e-6), key
        assert not torch.equal(plain[key], weight)


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN])
@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_have_no_gradient_and_no_state(name, dtype):
    model = tiny_model(hidden=64)
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    optimizer = Optimizer(model, TrainConfig(steps=9, optimizer=name, ema=0.9), dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert optimizer.masters.keys() == before.keys() - frozen
    assert not any(key.partition("/")[2] in frozen for key in optimizer.state())
    advance(model, optimizer, range(2))
    optimizer.finish()
    for key, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert p.grad is None
        # Kept once, so rounded for good.
        rounded = before[key].to(dtype).float()
        assert torch.equal(p, rounded) == (key in frozen)


@pytest.mark.parametrize("came_as", [torch.float32, torch.bfloat16])
def test_an_adapter_is_float32_and_its_base_is_kept_once(came_as):
    model = tiny_model().to(came_as)
    base = {key: p.data_ptr() for key, p in model.named_parameters()}
    add_adapter(model, LoraConfig(r=2, targets=["q_proj", "down_proj"], dora=True))
    wanted = set(adapters_of(model).adapters["default"].weights())
    start = {p: p.detach().clone() for p in wanted}
    optimizer = Optimizer(model, TrainConfig(steps=9, optimizer="adamw", ema=0.5), torch.bfloat16)
    assert set(optimizer.masters.values()) == wanted
    assert all(torch.equal(p, start[p]) for p in wanted)
    advance(model, optimizer, range(3))
    frozen = [p for p in model.parameters() if p not in wanted]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    if came_as == torch.bfloat16:
        assert {p.data_ptr() for p in frozen} == set(base.values())
    assert all(p.grad is not None and p.grad.any() for p in wanted)
    final = {p: p.detach().clone() for p in wanted}
    with optimizer.averaged():
        assert not any(torch.equal(p, final[p]) for p in wanted)
        mean = {p: p.detach().clone() for p in wanted}
    assert all(torch.equal(p, final[p]) for p in wanted)
    optimizer.finish()
    assert all(torch.equal(p, mean[p]) for p in wanted)
    assert {p.dtype for p in frozen} == {came_as}


@pytest.mark.parametrize("name", NAMES)
def test_two_micro_batches_add_up_in_masters_of_both_kinds(name):
    model = tiny_model()
    add_adapter(model, LoraConfig(r=2, targets=["q_proj"], modules_to_save=["down_proj"]))
    optimizer = Optimizer(model, TrainConfig(steps=9, optimizer=name), torch.bfloat16)
    kinds = set()
    for count in (1, 2):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad.add_(1)
        optimizer.collect_gradients()
        for weight, master in zip(optimizer._working, optimizer.masters.values(), strict=True):
            kinds.add(weight.dtype)
            assert (master.grad == count).all()
    assert kinds == {torch.float32, torch.bfloat16}
    before = [w.detach().clone() for w in optimizer.masters.values()]
    optimizer.step(1.0, 0)
    for old, new in zip(before, optimizer.masters.values(), strict=True):
        assert not torch.equal(old, new)
    optimizer.clear_gradients()
    assert not any(master.grad.any() for master in optimizer.masters.values())


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN])
def test_a_model_leaves_able_to_run(dtype):
    for came_as in (torch.float32, torch.bfloat16):
        model = tiny_model().to(came_as)
        model.model.layers[0].requires_grad_(False)
        optimizer = Optimizer(model, TrainConfig(steps=9), dtype)
        advance(model, optimizer, range(1))
        optimizer.finish()
        left_as = torch.float32 if dtype == torch.float32 else came_as
        assert {p.dtype for p in model.parameters()} == {left_as}
        assert model.packed_loss(TensorBatch.of(tiny_batches().at(0))).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN])
def test_quantized_layers_stay_as_they_are(dtype):
    inner = nn.Linear(16, 8)
    layer = Int8Linear(16, 8, bias=True)
    layer.weight, layer.weight_scale = quantize_rows(inner.weight.detach(), torch.float32)
    layer.bias = inner.bias.detach()
    model = nn.Sequential(layer, nn.Linear(8, 4))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    Optimizer(model, TrainConfig(steps=9), dtype)
    for key, value in layer.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
    assert model[1].weight.dtype == dtype


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="nothing to train"):
        Optimizer(tiny_model().requires_grad_(False), TrainConfig(steps=9), torch.float32)


def test_what_is_no_products_weight_is_neither_orthogonalised_nor_decayed():
    from hone.models import CausalLM, Experts, ModelConfig, StateSpace
    from hone.train.optimizers.muon import hidden_matrices

    mixture = CausalLM(ModelConfig(50, 16, 24, 1, 2, experts=Experts(4, 2, 24, shared_size=8)))
    names = hidden_matrices(mixture)
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.layers.0.mlp.shared_expert.up_proj.weight" in names
    assert not any(name.endswith(("gate.weight", "lm_head.weight")) for name in names)

    mamba = CausalLM(
        ModelConfig(50, 16, 32, 1, mixer="mamba", state_space=StateSpace(32, 4, rank=2))
    )
    mamba.initialise(seed=0)
    before = mamba.model.layers[0].mixer.A_log.detach().clone()
    config = TrainConfig(steps=9, optimizer="muon", weight_decay=0.5, learning_rate=0.1)
    optimizer = Optimizer(mamba, config, torch.float32)
    optimizer.clear_gradients()
    optimizer.step(1.0, 0)
    assert torch.equal(mamba.model.layers[0].mixer.A_log, before)
