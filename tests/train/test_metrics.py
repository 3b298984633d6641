import errno
import json

import numpy as np
import pytest
import torch

from hone.core.errors import CapacityError, CheckpointError, HoneError
from hone.train.metrics import MetricsLog


def test_lines_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": float("nan")})
        kept = log.sync()
        log.write({"step": 2})
        assert kept < log.sync() == path.stat().st_size
    with MetricsLog(path, kept) as log:
        log.write({"step": 2, "name": "가"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "name": "가"},
    ]
    with MetricsLog(path):
        assert path.stat().st_size == 0


def test_the_lines_that_were_kept_can_be_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "name": "가"})
        kept = log.sync()
        log.write({"step": 2})
    with MetricsLog(path, kept) as log:
        assert log.records() == [{"step": 1, "name": "가"}]
        path.write_bytes(b"x" * kept)
        with pytest.raises(CheckpointError, match=r"was changed since .*--fresh"):
            log.records()


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 3 bytes, and had 10"):
        MetricsLog(path, 10)
    assert path.read_text() == "{}\n"


def test_figures_of_any_kind_are_plain_json(tmp_path):
    figures = {
        "loss": torch.tensor(1.5),
        "f1": np.float32(0.5),
        "right": np.int64(3),
        "by_kind": {"가": [float("inf"), 1.0], "나": float("nan")},
        "samples": ["말", "NaN"],
    }
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write({"step": 1, **figures})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": 1.5,
        "f1": 0.5,
        "right": 3,
        "by_kind": {"가": [None, 1.0], "나": None},
        "samples": ["말", "NaN"],
    }


class SmallDisk:
    """A file on a disk that has room for a few bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "name": "가"})
        log._file = SmallDisk(log._file, room=8)
        with pytest.raises(CapacityError, match="is full"):
            log.write({"step": 2, "name": "나"})
    assert path.read_text() == '{"step": 1, "name": "가"}\n'


def test_a_line_is_written_whole_when_the_system_takes_a_part(tmp_path):
    class Slow(SmallDisk):
        def write(self, data):
            return self.file.write(data[:3])

    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log._file = Slow(log._file, room=0)
        log.write({"step": 2, "name": "나"})
    assert path.read_text() == '{"step": 2, "name": "나"}\n'


def test_a_folder_in_the_way_is_a_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(HoneError, match="folder"):
        MetricsLog(tmp_path / "folder")
