import logging

import pytest
import torch
from tiny import tiny_batches, tiny_model

from hone.train import TensorBatch, TrainConfig
from hone.train.memory import measure_peak
from hone.train.optimizers import Optimizer, adamw, paged

NAMES = ["paged_adamw", "paged_adamw_8bit"]


def trained(name, device="cpu", steps=3, state=None):
    """The optimizer of a tiny model after some steps, and the model."""
    model = tiny_model(hidden=64).to(device)
    optimizer = Optimizer(model, TrainConfig(steps=9, optimizer=name), torch.float32)
    if state:
        optimizer.load_state(state)
    for step in range(steps):
        batch = tiny_batches().at(step)
        optimizer.clear_gradients()
        (model.packed_loss(TensorBatch.of(batch, device)) / batch.n_trained).backward()
        optimizer.step(1.0, step)
    return model, optimizer


def assert_same(one, other):
    assert one.state().keys() == other.state().keys()
    for key, value in one.state().items():
        assert torch.equal(value.cpu(), other.state()[key].cpu()), key


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_on_a_cpu_paging_changes_nothing_and_says_so(name, caplog):
    with caplog.at_level(logging.INFO, "hone.train"):
        _, ours = trained(name)
    assert "pages nothing" in caplog.text
    assert_same(ours, trained(name.removeprefix("paged_"))[1])


@pytest.mark.parametrize("name", NAMES)
def test_visitors_are_updated_by_parts_and_brought_back(name, monkeypatch):
    _, expected = trained(name)
    visits = []

    def is_visitor(state, device):
        visits.append(state.numel())
        return True

    # As on a device of its own: every state is copied for its update, and copied back.
    monkeypatch.setattr(paged, "is_visitor", is_visitor)
    monkeypatch.setattr(adamw, "is_visitor", is_visitor)
    monkeypatch.setitem(paged._PART, "cpu", 1024)
    _, ours = trained(name)
    assert visits
    assert sum(size == 1024 for size in visits) > 10
    assert_same(ours, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_the_moments_wait_in_pinned_memory(name):
    _, ours = trained(name, "cuda")
    moments = {key: value for key, value in ours.state().items() if ".exp_avg" in key}
    assert all(m.device.type == "cpu" and m.is_pinned() for m in moments.values())
    assert_same(ours, trained(name.removeprefix("paged_"), "cuda")[1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_a_paged_run_goes_on_where_it_stopped(name):
    _, whole = trained(name, "cuda", steps=3)
    kept = {key: value.clone() for key, value in whole.state().items()}
    _, again = trained(name, "cuda", steps=0, state=kept)
    assert_same(again, whole)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_the_state_takes_none_of_the_devices_memory(name, monkeypatch):
    monkeypatch.setitem(paged._PART, "cuda", 2**16)
    model = torch.nn.Linear(2048, 2048, bias=False, device="cuda")
    config = TrainConfig(steps=9, optimizer=name)
    made = measure_peak(lambda: Optimizer(model, config, torch.float32), "cuda")
    gradient = 4 * model.weight.numel()
    assert made.held <= gradient + 2**12
    stepped = measure_peak(lambda: made.result.step(1.0, 0), "cuda")
    assert stepped.held <= 2**20  # the tables of codes
    assert stepped.bytes < gradient / 2
