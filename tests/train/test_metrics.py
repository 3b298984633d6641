import errno
import json

import pytest

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


def test_a_full_disk_and_a_folder_in_the_way_are_sentences(tmp_path):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):  # a buffered file tries to write once more, and says so again
            self.file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    def log_to_a_full_disk():
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log._file = Full(log._file)
        return log

    with pytest.raises(CapacityError, match="is full"), log_to_a_full_disk() as log:
        log.write({})
    with pytest.raises(CapacityError, match="is full"), log_to_a_full_disk():
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(HoneError, match="folder"):
        MetricsLog(tmp_path / "folder")
