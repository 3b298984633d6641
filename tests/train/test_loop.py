import errno
import json
import logging
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_batches, tiny_model

from hone.core.errors import CapacityError, CheckpointError, ConfigError, HoneError
from hone.data import IGNORED
from hone.kernels.linear import joined
from hone.train import TensorBatch, TrainConfig, checkpoints, train

CONFIG = TrainConfig(
    steps=12, warmup_steps=2, log_every=4, checkpoint_every=5, precision="fp32", micro_batches=2
)
TIMINGS = ("seconds", "tokens_per_second", "memory_bytes", "share_of_peak")


def lines(folder, timings=False):
    text = (folder / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in r.items() if timings or k not in TIMINGS} for r in records]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checkpoints_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class Altered:
    """Batches of which some are replaced."""

    fingerprint = "altered"

    def __init__(self, replacements):
        self.batches, self.replacements = tiny_batches(), replacements

    def at(self, step):
        change = self.replacements.get(step)
        return change(self.batches.at(step)) if change else self.batches.at(step)


def without_labels(batch):
    return replace(batch, labels_N=np.full_like(batch.labels_N, IGNORED), n_trained=0)


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(counters):
        if counters.step == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_copying_is_learnt(tmp_path, optimizer):
    config = TrainConfig(
        steps=80, warmup_steps=10, optimizer=optimizer, learning_rate=0.02, checkpoint_every=80
    )
    model = tiny_model()
    result = train(model, tiny_batches(256), config, tmp_path)
    records = lines(tmp_path)
    assert records[0]["loss"] > 2.5
    assert result.loss == records[-1]["loss"] < 2.4
    assert not model.training


@pytest.mark.smoke
def test_a_run_leaves_its_metrics_and_checkpoints(tmp_path):
    batches = tiny_batches()
    result = train(tiny_model(), batches, CONFIG, tmp_path)
    records = lines(tmp_path, timings=True)
    assert [record["step"] for record in records] == [4, 8, 12]
    made = [batches.at(step) for step in range(12)]
    assert records[-1]["tokens"] == result.tokens == sum(batch.n_tokens for batch in made)
    assert result.trained_tokens == sum(batch.n_trained for batch in made)
    assert set(records[0]) == {
        *("step", "loss", "lr", "tokens", "trained_tokens", "grad_norm"),
        *("skipped_empty", "skipped_bad", "skipped_overflow"),
        *("seconds", "tokens_per_second", "memory_bytes"),
    }
    assert checkpoints_in(tmp_path) == ["step-00000010", "step-00000012"]
    assert (result.steps, result.resumed_from, result.precision) == (12, 0, "fp32")


def test_the_first_loss_is_the_mean_over_the_trained_tokens(tmp_path):
    model, batches = tiny_model(), tiny_batches()
    batch = batches.at(0)
    expected = model.packed_loss(TensorBatch.of(batch)).item() / batch.n_trained
    train(model, batches, replace(CONFIG, steps=1, log_every=1), tmp_path)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, precision, stop):
    config = replace(CONFIG, precision=precision, ema=0.9)
    whole, parts = tiny_model(), tiny_model()
    train(whole, tiny_batches(), config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(parts, tiny_batches(), config, tmp_path / "parts", on_step=stop_at(stop))
    parts = tiny_model()
    result = train(parts, tiny_batches(), config, tmp_path / "parts")
    assert result.resumed_from == stop // 5 * 5
    assert equal(weights(whole), weights(parts))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_dropout_goes_on_where_it_was(tmp_path):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.drawn = tiny_model(), []

        def packed_loss(self, batch):
            self.drawn.append(torch.rand(()))
            return self.inner.packed_loss(batch) * (0.5 + self.drawn[-1])

    whole, parts = Noisy(), Noisy()
    train(whole, tiny_batches(), CONFIG, tmp_path / "whole")
    assert len(set(map(float, whole.drawn))) == len(whole.drawn) == 24
    with pytest.raises(Stop):
        train(parts, tiny_batches(), CONFIG, tmp_path / "parts", on_step=stop_at(8))
    parts = Noisy()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    train(parts, tiny_batches(), CONFIG, tmp_path / "parts")
    assert equal(weights(whole), weights(parts))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random stream was moved"


def test_a_finished_run_is_not_done_again(tmp_path):
    first, second = tiny_model(), tiny_model()
    train(first, tiny_batches(), CONFIG, tmp_path)
    before = lines(tmp_path, timings=True)
    result = train(second, tiny_batches(), CONFIG, tmp_path, on_step=stop_at(12))
    assert result.resumed_from == 12
    assert result.loss == before[-1]["loss"]
    assert equal(weights(first), weights(second))
    assert lines(tmp_path, timings=True) == before


def test_a_damaged_checkpoint_costs_only_its_steps(tmp_path, caplog):
    whole, model = tiny_model(), tiny_model()
    train(whole, tiny_batches(), CONFIG, tmp_path)
    before = lines(tmp_path)
    (tmp_path / "checkpoints" / "step-00000012" / "state.safetensors").write_bytes(b"x")
    result = train(model, tiny_batches(), CONFIG, tmp_path)
    assert result.resumed_from == 10
    assert equal(weights(whole), weights(model))
    assert lines(tmp_path) == before


def test_fresh_forgets_the_earlier_run(tmp_path):
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    config = replace(CONFIG, learning_rate=0.5, steps=4)
    result = train(tiny_model(), tiny_batches(), config, tmp_path, fresh=True)
    assert result.resumed_from == 0
    assert [record["step"] for record in lines(tmp_path)] == [4]
    assert checkpoints_in(tmp_path) == ["step-00000004"]


@pytest.mark.parametrize("wrong", [{"freeze": ("*",)}, {"activation_checkpointing": "blocks"}])
def test_a_fresh_run_that_cannot_begin_leaves_the_earlier_one(tmp_path, wrong):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    before = checkpoints_in(tmp_path), lines(tmp_path)
    with pytest.raises(ConfigError):
        train(Bare(), tiny_batches(), replace(CONFIG, **wrong), tmp_path, fresh=True)
    assert (checkpoints_in(tmp_path), lines(tmp_path)) == before


def test_two_runs_do_not_share_a_folder(tmp_path):
    def second(counters):
        with pytest.raises(HoneError, match=f"Another run is training in {tmp_path}"):
            train(tiny_model(), tiny_batches(), CONFIG, tmp_path, fresh=True)

    train(tiny_model(), tiny_batches(), CONFIG, tmp_path, on_step=second)
    assert train(tiny_model(), tiny_batches(), CONFIG, tmp_path).resumed_from == 12


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"precision": "bf16"}])
def test_a_trained_model_has_its_joint_weights_together(tmp_path, change):
    model = tiny_model()
    train(model, tiny_batches(), replace(CONFIG, steps=2, **change), tmp_path)
    inner = model.model.layers[0].mlp
    assert joined([inner.gate_proj.weight, inner.up_proj.weight]).data_ptr() == (
        inner.gate_proj.weight.data_ptr()
    )


def test_a_lost_metrics_file_is_noticed(tmp_path):
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 0 bytes"):
        train(tiny_model(), tiny_batches(), CONFIG, tmp_path)


def test_another_number_of_threads_is_warned_of(tmp_path, caplog):
    train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    torch.set_num_threads(2)
    with caplog.at_level(logging.WARNING):
        train(tiny_model(), tiny_batches(), CONFIG, tmp_path)
    assert "threads was 1 and is 2" in caplog.text


def test_auto_precision_stays_what_it_was(tmp_path, monkeypatch, caplog):
    config = replace(CONFIG, precision="auto", steps=4, checkpoint_every=2)
    monkeypatch.setattr("hone.train.loop.preferred_dtype", lambda device: torch.bfloat16)
    with pytest.raises(Stop):
        train(tiny_model(), tiny_batches(), config, tmp_path, on_step=stop_at(2))
    monkeypatch.setattr("hone.train.loop.preferred_dtype", lambda device: torch.float32)
    with caplog.at_level(logging.WARNING):
        assert train(tiny_model(), tiny_batches(), config, tmp_path).precision == "bf16"
    assert "Going on" not in caplog.text, "nothing is different"


def test_a_batch_without_labels_is_skipped_and_counted(tmp_path):
    batches = Altered({3: without_labels, 4: without_labels})
    result = train(tiny_model(), batches, replace(CONFIG, steps=6, log_every=1), tmp_path)
    assert (result.skipped_empty, result.skipped_bad) == (2, 0)
    for figure in ("loss", "grad_norm"):
        assert [record[figure] is None for record in lines(tmp_path)] == [
            step in (3, 4) for step in range(6)
        ]


class Fragile(torch.nn.Module):
    """Gives a loss that is not finite at chosen calls."""

    def __init__(self, bad):
        super().__init__()
        self.inner, self.bad, self.calls = tiny_model(), bad, 0

    def packed_loss(self, batch):
        self.calls += 1
        loss = self.inner.packed_loss(batch)
        return loss * float("nan") if self.calls in self.bad else loss


def test_a_bad_step_changes_nothing_and_is_counted(tmp_path):
    history = []

    def remember(counters):
        history.append(weights(model))

    config = replace(CONFIG, steps=6, micro_batches=1, max_bad_steps=3)
    model = Fragile({3, 4})
    result = train(model, tiny_batches(), config, tmp_path, on_step=remember)
    assert result.skipped_bad == 2
    assert equal(history[1], history[2])
    assert equal(history[2], history[3])
    assert not equal(history[3], history[4])
    assert all(p.isfinite().all() for p in history[-1].values())


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    config = replace(CONFIG, micro_batches=1, max_bad_steps=3)
    with pytest.raises(HoneError, match=r"step 9: the loss.*3 steps in a row.*learning rate"):
        train(Fragile({2, 7, 8, 9}), tiny_batches(), config, tmp_path)
    assert checkpoints_in(tmp_path) == ["step-00000005"]


def test_evaluation_sees_the_mean_and_leaves_no_trace(tmp_path):
    seen = []

    def evaluate(model, step):
        seen.append(weights(model))
        assert not model.training
        torch.rand(3)
        return {"accuracy": step / 10}

    config = replace(CONFIG, ema=0.5, evaluate_every=4)
    plain, watched = tiny_model(), tiny_model()
    train(plain, tiny_batches(), replace(config, evaluate_every=0), tmp_path / "plain")
    train(watched, tiny_batches(), config, tmp_path / "watched", evaluate=evaluate)
    assert equal(weights(plain), weights(watched))
    assert equal(seen[-1], weights(watched))
    evaluations = [r for r in lines(tmp_path / "watched") if "accuracy" in r]
    assert evaluations == [{"step": s, "accuracy": s / 10} for s in (4, 8, 12)]


def test_ctrl_c_finishes_the_step_and_keeps_it(tmp_path):
    class Pressing(Altered):
        def at(self, step):
            if step == 6:  # in the middle of the seventh step
                os.kill(os.getpid(), signal.SIGINT)
            return super().at(step)

    whole, model = tiny_model(), tiny_model()
    train(whole, Altered({}), CONFIG, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model, Pressing({}), CONFIG, tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints_in(tmp_path / "parts") == ["step-00000005", "step-00000007"]
    model = tiny_model()
    assert train(model, Altered({}), CONFIG, tmp_path / "parts").resumed_from == 7
    assert equal(weights(whole), weights(model))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_ctrl_c_after_the_last_step_is_not_lost(tmp_path):
    def press(counters):
        if counters.step == CONFIG.steps:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), tiny_batches(), CONFIG, tmp_path, on_step=press)
    assert train(tiny_model(), tiny_batches(), CONFIG, tmp_path).resumed_from == CONFIG.steps


def test_training_works_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(tiny_model(), tiny_batches(), CONFIG, tmp_path))
    )
    thread.start()
    thread.join()
    assert results[0].steps == 12


def test_a_full_disk_stops_with_a_sentence_and_can_go_on(tmp_path, monkeypatch):
    whole, model = tiny_model(), tiny_model()
    train(whole, tiny_batches(), CONFIG, tmp_path / "whole")
    write = checkpoints._write_safetensors

    def full(path, tensors):
        if "step-00000010" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, tensors)

    monkeypatch.setattr(checkpoints, "_write_safetensors", full)
    with pytest.raises(CapacityError, match="is full"):
        train(model, tiny_batches(), CONFIG, tmp_path / "parts")
    assert checkpoints_in(tmp_path / "parts") == ["step-00000005"]
    monkeypatch.undo()
    model = tiny_model()
    assert train(model, tiny_batches(), CONFIG, tmp_path / "parts").resumed_from == 5
    assert equal(weights(whole), weights(model))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_threads_that_make_batches_change_nothing(tmp_path):
    whole, ahead = tiny_model(), tiny_model()
    train(whole, tiny_batches(), CONFIG, tmp_path / "whole")
    config = replace(CONFIG, workers=3)
    with pytest.raises(Stop):
        train(ahead, tiny_batches(), config, tmp_path / "ahead", on_step=stop_at(7))
    ahead = tiny_model()
    train(ahead, tiny_batches(), config, tmp_path / "ahead")
    assert equal(weights(whole), weights(ahead))
    assert lines(tmp_path / "whole") == lines(tmp_path / "ahead")


def test_savers_of_memory_are_the_models(tmp_path):
    class Saving(Fragile):
        def set_activation_checkpointing(self, *settings):
            self.settings = settings

    saving = {"activation_checkpointing": "blocks", "checkpointed_blocks": 3}
    config = replace(CONFIG, steps=1, **saving, offload_activations=True)
    model = Saving(set())
    train(model, tiny_batches(), config, tmp_path / "saving")
    assert model.settings == ("blocks", 3, True)
    with pytest.raises(ConfigError, match="Fragile cannot compute activations again"):
        train(Fragile(set()), tiny_batches(), config, tmp_path / "other")
