import pytest
import torch

from hone.train import TrainConfig
from hone.train.optimizers import Optimizer
from hone.train.optimizers.adafactor import Adafactor

SHAPES = {
    "matrix": (6, 10),
    "tall": (12, 3),
    "bias": (7,),
    "kernel": (5, 1, 4),
    "experts": (3, 4, 5),
}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.smoke
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_twenty_steps_are_those_of_transformers(decay):
    optimization = pytest.importorskip("transformers.optimization")
    ours = weights()
    theirs = {name: torch.nn.Parameter(w.clone()) for name, w in ours.items()}
    config = TrainConfig(steps=99, optimizer="adafactor", weight_decay=decay)
    optimizer = Adafactor(ours, config)
    matrices = [w for w in theirs.values() if w.ndim >= 2]
    oracle = optimization.Adafactor(
        [
            {"params": matrices, "weight_decay": decay},
            {"params": [w for w in theirs.values() if w.ndim < 2]},
        ],
        lr=1.0,
        scale_parameter=False,
        relative_step=False,
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        rate = 0.1 / (1 + step)
        for name, weight in ours.items():
            # Large gradients now and then, so that the update is clipped.
            weight.grad = torch.randn(weight.shape, generator=generator) * (1 + step % 5) ** 2
            theirs[name].grad = weight.grad.clone()
        optimizer.step(rate)
        for group in oracle.param_groups:
            group["lr"] = rate
        oracle.step()
        for name, weight in ours.items():
            assert torch.allclose(weight, theirs[name], atol=1e-6), (name, step)


def test_a_factored_moment_is_exact_for_a_gradient_of_rank_one():
    weight = torch.zeros(4, 6)
    row, column = torch.rand(4, 1) + 0.1, torch.rand(1, 6) + 0.1
    weight.grad = row * column * torch.randn(4, 6).sign()
    optimizer = Adafactor({"w": weight}, TrainConfig(steps=9))
    optimizer.step(0.5)
    assert torch.allclose(weight, -0.5 * weight.grad.sign(), atol=1e-5)


def test_an_update_is_no_longer_than_its_rate():
    weight = torch.zeros(8, 8)
    optimizer = Adafactor({"w": weight}, TrainConfig(steps=9, weight_decay=0.0))
    for size in (1e-3, 1.0, 1e4):
        before = weight.clone()
        weight.grad = torch.randn(8, 8) * size
        optimizer.step(0.2)
        assert (weight - before).square().mean().sqrt() <= 0.2 * (1 + 1e-5)


@pytest.mark.parametrize("zeros", ["all", "row", "column"])
def test_gradients_of_zero_move_nothing(zeros):
    weight = torch.ones(4, 6)
    optimizer = Adafactor({"w": weight}, TrainConfig(steps=9, weight_decay=0.0))
    for _ in range(3):
        weight.grad = torch.randn(4, 6)
        where = {"all": ..., "row": 1, "column": (slice(None), 1)}[zeros]
        weight.grad[where] = 0
        optimizer.step(0.1)
    assert weight.isfinite().all()
    assert (weight[where] == 1).all()


def test_the_state_is_sums_of_rows_and_columns_only():
    model = torch.nn.Linear(50, 40)
    config = TrainConfig(steps=9, optimizer="adafactor")
    state = Optimizer(model, config, torch.float32).state()
    sizes = {name: t.numel() for name, t in state.items() if name.startswith("adafactor.exp")}
    assert sizes == {
        "adafactor.exp_avg_sq_row/weight": 40,
        "adafactor.exp_avg_sq_col/weight": 50,
        "adafactor.exp_avg_sq/bias": 40,
    }
