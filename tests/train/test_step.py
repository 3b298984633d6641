import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny_batches, tiny_model

from hone.core.errors import HoneError
from hone.data import IGNORED, PackedBatches, Sample, completion_sample, pack
from hone.parallel import Processes
from hone.train import Counters, SummedLoss, TrainConfig, step, train
from hone.train.optimizers import Optimizer
from hone.train.step import FIRST_SCALE, Stepper

CONFIG = TrainConfig(steps=8, warmup_steps=2, precision="fp32", grad_clip=0.0, log_every=1)


class Counted(torch.nn.Module):
    """The loss of each call times what ``factor(call)`` says."""

    def __init__(self, factor=lambda call: 1.0):
        super().__init__()
        self.inner, self.factor, self.calls = tiny_model(), factor, 0

    def packed_loss(self, batch):
        self.calls += 1
        return self.inner.packed_loss(batch) * self.factor(self.calls)


def take(batch, config=CONFIG, dtype=torch.float32, counters=None, model=None):
    """The gradients of one step, by name, and its counters."""
    model, counters = model or Counted(), counters or Counters()
    optimizer = Optimizer(model, config, dtype)
    stepper = Stepper(
        model, SummedLoss(), optimizer, config, Processes(), scaled=dtype == torch.float16
    )
    stepper.take(batch, counters)
    return {name: master.grad for name, master in optimizer.masters.items()}, counters


@pytest.mark.smoke
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_change_nothing(parts):
    batch = tiny_batches(600).at(0)
    whole, _ = take(batch)
    model = Counted()
    cut, counters = take(batch, replace(CONFIG, micro_batches=parts), model=model)
    assert model.calls == parts
    for name, gradient in whole.items():
        assert torch.allclose(gradient, cut[name], atol=1e-6, rtol=1e-4), name
    assert counters.trained_tokens == batch.n_trained


def test_a_micro_batch_without_labels_is_left_out():
    batch = pack([completion_sample([5, 6, 7], [8, 2]), completion_sample([4, 4], [9, 2])])
    batch.labels_N[: batch.cu_seqlens[1]] = IGNORED
    batch = replace(batch, n_trained=int((batch.labels_N != IGNORED).sum()))
    model = Counted()
    _, counters = take(batch, replace(CONFIG, micro_batches=2), model=model)
    assert model.calls == 1
    assert counters.trained_tokens == 2


class Scorer(torch.nn.Module):
    """A number for each sequence: the sum of its tokens' weights."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def packed_loss(self, batch):
        bounds = pairwise(batch.cu_seqlens.tolist())
        scores = [self.weight[batch.input_ids_N[a:b]].sum() for a, b in bounds]
        return ((torch.stack(scores) - batch.targets_B) ** 2).sum()


@pytest.mark.parametrize("parts", [1, 3])
def test_targets_of_whole_sequences_are_counted_one_each(tmp_path, parts):
    samples = [Sample([n % 8] * (1 + n % 3), target=float(n % 5)) for n in range(30)]
    batches = PackedBatches(samples, 20, 0)
    made = [batches.at(number) for number in range(8)]
    config = replace(CONFIG, micro_batches=parts, optimizer="adamw", learning_rate=0.1)
    result = train(Scorer(), batches, config, tmp_path)
    assert result.trained_tokens == sum(batch.n_samples for batch in made)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(np.mean(made[0].targets_B ** 2), rel=1e-6)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_scale_of_the_loss_is_not_in_the_gradients():
    batch = tiny_batches(600).at(0)
    scaled, counters = take(batch, dtype=torch.float16, counters=Counters(loss_scale=FIRST_SCALE))
    exact, _ = take(batch)
    assert counters.skipped_overflow == 0
    for name, gradient in exact.items():
        error = (scaled[name] - gradient).norm() / gradient.norm()
        assert error < 5e-3, name
    # What the scale is for: without one float16 has no numbers this small.
    small, _ = take(batch, dtype=torch.float16, model=Counted(lambda call: 1e-5))
    helped, _ = take(
        batch,
        dtype=torch.float16,
        model=Counted(lambda call: 1e-5),
        counters=Counters(loss_scale=FIRST_SCALE),
    )
    lost = [
        float((g == 0).float().mean())
        for g in (torch.cat([*map(torch.flatten, x.values())]) for x in (small, helped))
    ]
    assert lost[0] > 0.5 > lost[1]


def test_an_overflow_skips_the_step_halves_the_scale_and_is_counted(tmp_path):
    seen, weights = [], []

    def remember(counters):
        seen.append((counters.loss_scale, counters.skipped_overflow, counters.bad_in_a_row))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    # A finite loss, and gradients beyond float16 in the second and third step.
    model = Counted(lambda call: 1e5 if call in (2, 3) else 1.0)
    config = replace(CONFIG, precision="fp16", steps=5)
    result = train(model, tiny_batches(), config, tmp_path, on_step=remember)
    assert [scale / FIRST_SCALE for scale, *_ in seen] == [1, 0.5, 0.25, 0.25, 0.25]
    assert [skipped for _, skipped, _ in seen] == [0, 1, 2, 2, 2]
    assert (result.skipped_overflow, result.skipped_bad) == (2, 0)
    assert [torch.equal(a, b) for a, b in pairwise(weights)] == [True, True, False, False]
    assert weights[-1].isfinite().all()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_overflow"] for line in lines] == [0, 1, 2, 2, 2]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, False]


def test_the_scale_doubles_after_good_steps_and_outlives_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_STEPS_TO_DOUBLE", 3)
    config = replace(CONFIG, precision="fp16", checkpoint_every=4)
    scales = {}

    def run(folder, stop=None):
        def remember(counters):
            scales.setdefault(folder, []).append(counters.loss_scale / FIRST_SCALE)
            if counters.step == stop:
                raise InterruptedError

        # Step 3 overflows: the good steps are counted anew.
        model = Counted()
        model.factor = lambda call: 1e6 if len(scales.get(folder, [])) == 2 else 1.0
        train(model, tiny_batches(), config, tmp_path / folder, on_step=remember)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = run("whole")
    assert scales["whole"] == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1]
    with pytest.raises(InterruptedError):
        run("parts", stop=5)
    del scales["parts"][-1]  # step 5 is done again
    parts = run("parts")
    assert scales["parts"] == scales["whole"]
    assert torch.equal(whole, parts)


def test_at_the_least_scale_an_overflow_is_a_bad_step():
    model = Counted(lambda call: 1e9)
    batch = tiny_batches().at(0)
    _, counters = take(batch, dtype=torch.float16, model=model, counters=Counters(loss_scale=2.0))
    assert (counters.skipped_overflow, counters.skipped_bad, counters.loss_scale) == (1, 0, 1.0)
    take(batch, dtype=torch.float16, model=model, counters=counters)
    assert (counters.skipped_overflow, counters.skipped_bad, counters.loss_scale) == (1, 1, 1.0)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_no_scale_helps_a_loss_that_is_not_finite(tmp_path, precision):
    config = replace(CONFIG, precision=precision, max_bad_steps=3)
    model = Counted(lambda call: float("nan") if call > 2 else 1.0)
    batches = tiny_batches()
    with pytest.raises(
        HoneError, match=r"step 5: .* 3 steps in a row\. The last batch is in .*npz"
    ):
        train(model, batches, config, tmp_path)
    with np.load(tmp_path / "bad-batch-00000005.npz") as saved:
        wanted = batches.at(4)
        assert np.array_equal(saved["input_ids_N"], wanted.input_ids_N)
        assert np.array_equal(saved["labels_N"], wanted.labels_N)
        assert np.array_equal(saved["cu_seqlens"], wanted.cu_seqlens)
        assert "source_ids_M" not in saved
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_that_are_not_finite_stop_the_run_too(tmp_path, precision):
    class Steep(Counted):
        def packed_loss(self, batch):
            loss = super().packed_loss(batch)
            # The root of zero has no slope: a finite loss with a gradient that is none.
            return loss + (0 * self.inner.model.norm.weight.float()).sum().abs().sqrt()

    with pytest.raises(HoneError, match="not finite in 2 steps in a row"):
        train(
            Steep(), tiny_batches(), replace(CONFIG, precision=precision, max_bad_steps=2), tmp_path
        )


def test_processes_draw_numbers_of_their_own():
    class Peer(Processes):
        def total(self, value):
            return value

        def sum_(self, tensors):
            pass

    class Noisy(Counted):
        def packed_loss(self, batch):
            drawn.append(float(torch.rand(())))
            return super().packed_loss(batch)

    drawn = []
    for rank in (0, 1, 1):
        model = Noisy()
        optimizer = Optimizer(model, CONFIG, torch.float32)
        stepper = Stepper(model, SummedLoss(), optimizer, CONFIG, Peer(rank, 2))
        stepper.take(tiny_batches(600).at(0), Counters())
    assert drawn[0] != drawn[1] == drawn[2]
