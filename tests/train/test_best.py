"""The checkpoint with the lowest loss of an evaluation."""

from dataclasses import replace

import pytest
from tiny import tiny_batches, tiny_model

from hone.core.errors import ConfigError
from hone.train import TrainConfig, train
from hone.train.checkpoints import CheckpointStore

CONFIG = TrainConfig(
    steps=12,
    warmup_steps=2,
    precision="fp32",
    checkpoint_every=4,
    evaluate_every=3,
    keep_last=1,
    keep_best=True,
)


def run(folder, losses, config=CONFIG, **options):
    """Train with these held-out losses by step."""

    def evaluate(model, step):
        return {"loss": losses[step], "accuracy": 0.5}

    return train(tiny_model(), tiny_batches(), config, folder, evaluate=evaluate, **options)


def kept(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").iterdir())


@pytest.mark.smoke
def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    result = run(tmp_path, {3: 2.0, 6: 1.0, 9: 1.0, 12: 3.0})
    assert (result.best_step, result.best_loss) == (6, 1.0)
    assert kept(tmp_path) == [6, 12]


def test_without_the_setting_the_last_are_kept(tmp_path):
    result = run(tmp_path, {3: 2.0, 6: 1.0, 9: 1.0, 12: 3.0}, replace(CONFIG, keep_best=False))
    assert (result.best_step, result.best_loss) == (None, None)
    assert kept(tmp_path) == [12]


def test_a_loss_that_is_not_finite_is_not_the_best(tmp_path):
    nan = float("nan")
    result = run(tmp_path, {3: nan, 6: 5.0, 9: float("inf"), 12: nan})
    assert (result.best_step, kept(tmp_path)) == (6, [6, 12])


def test_the_best_is_remembered_when_the_run_goes_on(tmp_path):
    def stop(counters):
        if counters.step == 8:
            raise InterruptedError

    losses = {3: 1.0, 6: 2.0, 9: 1.5, 12: 0.5}
    with pytest.raises(InterruptedError):
        run(tmp_path, losses, on_step=stop)
    assert kept(tmp_path) == [3, 8]
    assert CheckpointStore(tmp_path / "checkpoints", 1).latest().step == 8
    seen = []
    result = run(tmp_path, losses, on_step=lambda c: seen.append((c.step, c.best_step)))
    assert seen == [(9, 3), (10, 3), (11, 3), (12, 12)]
    assert (result.best_loss, kept(tmp_path)) == (0.5, [12])


def test_a_best_one_that_is_lost_is_not_the_best(tmp_path):
    """Step 12 is the best and takes the place of step 3, and is damaged."""
    losses = {3: 1.0, 6: 2.0, 9: 3.0, 12: 0.5}
    run(tmp_path, losses, replace(CONFIG, keep_last=2))
    assert kept(tmp_path) == [8, 12]
    (tmp_path / "checkpoints" / "step-00000012" / "state.safetensors").write_bytes(b"")
    result = run(tmp_path, losses | {9: 1.8, 12: 1.9}, replace(CONFIG, keep_last=2))
    assert (result.resumed_from, result.best_step) == (8, 9)
    assert CheckpointStore(tmp_path / "checkpoints", 1).at(9).step == 9


def test_keeping_the_best_needs_losses_to_compare(tmp_path):
    with pytest.raises(ConfigError, match="keep_best needs evaluations"):
        train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="keep_best needs evaluations"):
        run(tmp_path, {}, replace(CONFIG, evaluate_every=0))
    with pytest.raises(ConfigError, match="has none, only: accuracy"):
        train(
            tiny_model(),
            tiny_batches(),
            CONFIG,
            tmp_path,
            evaluate=lambda model, step: {"accuracy": 1.0},
        )
