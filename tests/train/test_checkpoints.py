import errno
import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from hone.core.errors import CapacityError, CheckpointError
from hone.train import checkpoints
from hone.train.checkpoints import CheckpointStore

TENSORS = {
    "weights/a": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "b": torch.tensor(3.0),
    "c": torch.zeros(0, 4),
    "한": torch.tensor([1, 2], dtype=torch.uint8),
    "d": torch.randn(3, 3).bfloat16(),
}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep_last=2)


def save(store, *steps):
    for step in steps:
        store.save(step, {"x": torch.full((100,), float(step))}, {"step": step})


def steps_of(store):
    return sorted(int(path.name.split("-")[1]) for path in store.folder.iterdir())


def test_what_is_saved_comes_back(store):
    path = store.save(7, TENSORS, {"note": "가"})
    found = store.latest()
    assert (found.step, found.path, found.manifest["note"]) == (7, path, "가")
    tensors = found.tensors()
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert set(load_file(path / "state.safetensors")) == set(TENSORS)


def test_the_last_ones_are_kept(store):
    save(store, 1, 2, 3, 100)
    assert steps_of(store) == [3, 100]
    assert store.latest().step == 100


def test_a_step_to_keep_outlives_the_last_ones(store):
    for step in (1, 2, 3, 4):
        store.save(step, TENSORS, {}, keep=[2, None])
    assert steps_of(store) == [2, 3, 4]
    store.save(5, TENSORS, {}, keep=[4])
    assert steps_of(store) == [4, 5]


def test_what_does_not_read_back_is_no_checkpoint(store, monkeypatch):
    save(store, 1)
    write = checkpoints._write_safetensors

    def failing_disk(path, tensors):
        digest = write(path, tensors)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return digest

    monkeypatch.setattr(checkpoints, "_write_safetensors", failing_disk)
    with pytest.raises(CheckpointError, match="step-00000002 did not read back as it was written"):
        save(store, 2)
    assert steps_of(store) == [1]
    assert store.latest().step == 1


def test_no_folder_means_no_checkpoint(store):
    assert store.latest() is None
    store.clear()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "list"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store, damage, caplog):
    save(store, 1, 2)
    newest = store.folder / "step-00000002"
    state, manifest = newest / "state.safetensors", newest / "manifest.json"
    content = state.read_bytes()
    if damage == "flip":
        state.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "truncate":
        state.write_bytes(content[:-1])
    elif damage == "remove":
        state.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.write_text("[]")
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 1
    assert "step-00000002 is damaged" in caplog.text
    assert "Going on from step-00000001" in caplog.text
    # Gone, or it would count as one of the last to keep.
    assert steps_of(store) == [1]


def test_when_all_are_damaged_the_sentence_says_what_to_do(store):
    save(store, 1, 2)
    for file in store.folder.glob("*/state.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000002 is damaged.*--fresh"):
        store.latest()
    assert steps_of(store) == [1, 2]


def test_without_its_manifest_it_is_no_checkpoint(store):
    save(store, 1, 2)
    (store.folder / "step-00000002" / "manifest.json").unlink()
    assert store.latest().step == 1


def test_another_format_is_not_taken_for_damage(store):
    save(store, 1)
    manifest = store.folder / "step-00000001" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        store.latest()
    assert manifest.exists()


def test_a_full_disk_leaves_the_last_one_intact(store, monkeypatch):
    save(store, 1)
    real_open = open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 150

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    monkeypatch.setattr(checkpoints, "open", lambda *a: Full(real_open(*a)), raising=False)
    with pytest.raises(CapacityError, match="is full"):
        save(store, 2)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert store.latest().step == 1


def test_leftovers_of_a_killed_process_are_removed(store):
    save(store, 1)
    leftover = store.folder / ".hone-tmp-step-00000002-abcd"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert store.latest().step == 1
    assert not leftover.exists()


def test_clear_removes_all(store):
    save(store, 1, 2)
    store.clear()
    assert store.latest() is None
