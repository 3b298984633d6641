import math

import pytest
import torch
from tiny import tiny_batches, tiny_model

from hone.train import TensorBatch, TrainConfig
from hone.train.optimizers import Optimizer


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_is_all_there_is(name, dtype):
    config = TrainConfig(steps=9, optimizer=name, ema=0.5)

    def advance(model, optimizer, steps):
        for step in steps:
            optimizer.clear_gradients()
            backward(model, step)
            optimizer.collect_gradients()
            optimizer.clip_gradients()
            optimizer.step(1.0, step)

    model = tiny_model()
    optimizer = Optimizer(model, config, dtype)
    advance(model, optimizer, range(2))
    kept = {key: value.clone() for key, value in optimizer.state().items()}
    advance(model, optimizer, range(2, 4))

    other = tiny_model(seed=5)
    restored = Optimizer(other, config, dtype)
    restored.load_state(kept)
    advance(other, restored, range(2, 4))
    for key, value in optimizer.state().items():
        assert torch.equal(value, restored.state()[key]), key
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


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
