import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hone.core.errors import ConfigError
from hone.parallel import join_processes
from hone.parallel.processes import _buckets


@pytest.fixture(scope="module")
def report():
    program = Path(__file__).with_name("exchange.py")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sums_and_gathered_rows_are_those_of_both(report):
    first, second = (result["value"] for result in report["exchange"])
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first == second
    assert first["sums"] == [[[3.0] * 3] * 2, [11] * 3, [], [[1.0], [2.0], [3.0]], 0.5]
    assert first["gathered"] == [[[0, 3], False], [[2, 3], False]]
    assert first["total"] == 0.1 + 1.1
    assert first["any"] == [True, False]


def test_a_lost_process_is_noticed(report):
    survivor, lost = report["lost"]
    assert lost is None
    assert survivor["error"] == "HoneError"
    assert "Process 0 of 2 goes no further" in survivor["message"]


def test_nobody_waits_for_a_process_that_left(report):
    (noticed, error), later = (result["value"] for result in report["left"])
    assert error == "HoneError"
    assert noticed < later


@pytest.mark.smoke
def test_without_torchrun_a_process_works_alone():
    with join_processes({}) as alone:
        tensor = torch.ones(2, requires_grad=True)
        assert (alone.rank, alone.count, alone.first) == (0, 1, True)
        alone.sum_([tensor])
        alone.barrier()
        assert tensor.tolist() == [1.0, 1.0]
        assert [x.tolist() for x in alone.gather(tensor)] == [[1.0, 1.0]]
        assert alone.total(0.1) == 0.1
        assert alone.any(True)
        assert not alone.any(False)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "missing or no number: 'RANK'.*torchrun"),
        ({"WORLD_SIZE": "two"}, "no number: .*'two'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
            "no number: .*'x'",
        ),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        join_processes(environment)


def test_buckets_hold_one_kind_up_to_a_size(monkeypatch):
    monkeypatch.setattr("hone.parallel.processes._BUCKET_BYTES", 20)
    kinds = [torch.zeros(2), torch.zeros(3), torch.zeros(1), torch.zeros(9), torch.zeros(1).long()]
    assert [len(bucket) for bucket in _buckets(kinds)] == [2, 1, 1, 1]
    assert list(_buckets([])) == []
