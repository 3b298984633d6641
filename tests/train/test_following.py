import json
import mmap
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import tiny_batches, tiny_model

from hone.core import progress
from hone.train import Expected, TrainConfig, train
from hone.train.following import MemoryGauge

CONFIG = TrainConfig(steps=6, warmup_steps=2, precision="fp32", log_every=2)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def shown(monkeypatch):
    """What is shown off a terminal."""
    out = StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=out, width=200))
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    return out


@pytest.mark.smoke
def test_the_display_shows_what_is_expected_beside_what_is(tmp_path, shown):
    expected = Expected(flops_per_token=2e6, device_flops=1e10, peak_bytes=3_210_000_000)
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path, expected=expected, label="Tuning")
    text = shown.getvalue()
    first, *_, last, done = text.splitlines()
    assert first.startswith("Tuning: 1/6 steps")
    assert last.startswith("Tuning: 6/6 steps")
    assert last.split(" · ")[2] == f"loss {lines(tmp_path)[-1]['loss']:.3f}"
    for found in ("tokens/s", "of peak", "of 3.21 GB", "s left"):
        assert found in last
    assert "✓ Tuning · 6 steps" in done


def test_without_expectations_nothing_is_compared(tmp_path, shown):
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    last = shown.getvalue().splitlines()[-2]
    assert "tokens/s" in last
    assert "of peak" not in last
    assert " of " not in last
    assert "share_of_peak" not in lines(tmp_path)[0]


def test_a_run_that_goes_on_shows_its_steps(tmp_path, shown):
    train(tiny_model(), tiny_batches(), replace(CONFIG, checkpoint_every=3), tmp_path)
    # Without its last checkpoint.
    for file in (tmp_path / "checkpoints" / "step-00000006").iterdir():
        file.unlink()
    shown.truncate(0)
    train(tiny_model(), tiny_batches(), replace(CONFIG, checkpoint_every=3), tmp_path)
    assert "Training: 4/6 steps" in shown.getvalue()


def test_the_share_of_peak_is_that_of_all_devices():
    expected = Expected(flops_per_token=3e9, device_flops=1e12)
    assert expected.share_of_peak(100.0, 1) == pytest.approx(0.3)
    assert expected.share_of_peak(100.0, 2) == pytest.approx(0.15)
    assert Expected(flops_per_token=3e9).share_of_peak(100.0, 1) is None


def test_a_line_has_the_share_and_the_memory(tmp_path):
    expected = Expected(flops_per_token=2e6, device_flops=1e10)
    result = train(tiny_model(), tiny_batches(), CONFIG, tmp_path, expected=expected)
    for line in lines(tmp_path):
        assert line["share_of_peak"] == pytest.approx(
            line["tokens_per_second"] * 2e6 / 1e10, abs=1e-4
        )
        assert 0 < line["memory_bytes"] <= result.peak_bytes


def test_memory_is_that_of_the_weights_and_what_came_since(monkeypatch):
    model = torch.nn.Linear(1000, 1000, bias=False)
    gauge = MemoryGauge(model)
    assert gauge.peak() == pytest.approx(4e6, abs=1e6)
    held = mmap.mmap(-1, 160_000_000)  # not from a heap that may have kept what others freed
    np.frombuffer(held, np.uint8).fill(1)
    assert gauge.peak() == pytest.approx(164e6, rel=0.05)
    monkeypatch.setattr("hone.train.following._resident_bytes", lambda: 0)
    assert gauge.peak() == pytest.approx(164e6, rel=0.05), "the highest of all looks"


def test_the_tensors_of_the_heaviest_step_are_counted(tmp_path):
    model, batches = tiny_model(), tiny_batches()
    result = train(model, batches, CONFIG, tmp_path, expected=Expected(heaviest_step=1))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # Weights, gradients and two moments (or a momentum) stay; activations come on top.
    assert result.tensor_bytes > 3 * weights
    assert result.tensor_bytes < 200 * weights
    again = train(tiny_model(), batches, CONFIG, tmp_path / "b")
    assert again.tensor_bytes is None
    assert again.loss == result.loss, "counting changes nothing"


def test_memory_nobody_tells_is_not_made_up(tmp_path, monkeypatch, shown):
    monkeypatch.setattr("hone.train.following._resident_bytes", lambda: None)
    result = train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    assert result.peak_bytes is None
    assert lines(tmp_path)[-1]["memory_bytes"] is None
    assert "memory" not in shown.getvalue()


def test_the_loss_of_an_evaluation_is_not_that_of_training(tmp_path):
    config = replace(CONFIG, evaluate_every=3)
    train(
        tiny_model(),
        tiny_batches(),
        config,
        tmp_path,
        evaluate=lambda model, step: {"loss": step / 2, "f1": 1.0},
    )
    found = [line for line in lines(tmp_path) if "f1" in line]
    assert found == [{"step": s, "held_out_loss": s / 2, "f1": 1.0} for s in (3, 6)]
