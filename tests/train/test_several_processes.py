import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    program = Path(__file__).with_name("several_processes.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path_factory.mktemp("runs"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def values(results):
    assert all(result and "value" in result for result in results), results
    return [result["value"] for result in results]


def stopped(result):
    return (
        result["error"] == "HoneError"
        and "another process of this run has stopped" in (result["message"])
    )


def test_however_a_step_is_cut_it_is_the_same_step(report):
    whole = values(report["equivalence"]["1x1"])[0]
    steepest = np.abs(whole["gradients"]).max()
    assert whole["data"].keys() == {str(step) for step in range(20)}
    for cut, results in report["equivalence"].items():
        for found in values(results):
            assert found["data"] == whole["data"], cut
            assert found["bits"] == results[0]["value"]["bits"], cut
            gradients = np.subtract(found["gradients"], whole["gradients"])
            assert np.abs(gradients).max() < 1e-6 * steepest, cut
            assert np.abs(np.subtract(found["weights"], whole["weights"])).max() < 1e-4, cut
            assert found["loss"] == pytest.approx(whole["loss"], abs=1e-5), cut
    assert set(report["equivalence"]) == {"1x1", "1x2", "1x4", "1x8", "2x1", "2x4"}


def test_the_pairs_of_all_processes_are_one_batch(report):
    alone = values(report["contrastive"]["pairs-1"])[0]
    for found in values(report["contrastive"]["pairs-2"]):
        assert np.abs(np.subtract(found["weights"], alone["weights"])).max() < 1e-4
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-4)


def test_two_killed_processes_go_on_with_the_same_bits(report):
    runs = report["going_on"]
    survivor, killed = runs["killed"]
    assert killed is None
    assert stopped(survivor)
    whole = values(runs["whole"])[0]
    for again in values(runs["again"]):
        assert again["from"] == 10
        assert again["bits"] == whole["bits"]
        assert again["data"].items() <= whole["data"].items()
    timings = ("seconds", "tokens_per_second", "memory_bytes")
    for lines in runs["lines"].values():
        assert [line["step"] for line in lines] == [5, 10, 15, 20]
        for line in lines:
            for timing in timings:
                del line[timing]
    assert runs["lines"]["whole"] == runs["lines"]["again"]


def test_another_number_of_processes_and_parts_goes_on_and_says_so(report):
    whole, alone = values(report["going_on"]["whole"])[0], values(report["going_on"]["alone"])[0]
    assert alone["from"] == 10
    assert alone["data"].items() <= whole["data"].items()
    assert np.abs(np.subtract(alone["weights"], whole["weights"])).max() < 1e-4
    assert alone["bits"] != whole["bits"]
    (warning,) = alone["warnings"]
    assert "micro_batches was 1 and is 3; processes was 2 and is 1" in warning
    lines = report["going_on"]["lines"]
    for found, wanted in zip(lines["alone"], lines["whole"], strict=True):
        assert (found["step"], found["tokens"]) == (wanted["step"], wanted["tokens"])
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_the_other(report, rank):
    found = report["failures"][f"raise {rank}"]
    assert found[rank]["message"] == "something broke"
    assert stopped(found[1 - rank])
    assert found[1 - rank]["ended"] < found[rank]["ended"]
    first, second = report["failures"]["evaluation"]
    assert first["message"] == "no evaluation"
    assert stopped(second)


def test_what_is_not_finite_in_one_is_skipped_by_both(report):
    first, second = values(report["failures"]["nan 1"])
    assert (first["skipped_bad"], second["skipped_bad"]) == (1, 1)
    assert first["bits"] == second["bits"]
    assert np.isfinite(first["weights"]).all()


def test_ctrl_c_in_one_ends_both_after_the_same_step(report):
    found = report["failures"]
    assert [result["error"] for result in found["interrupt 1"]] == [
        "KeyboardInterrupt",
        "KeyboardInterrupt",
    ]
    assert found["checkpoints"] == ["step-00000005", "step-00000007"]


def test_processes_that_would_train_something_else_are_refused(report):
    for result in report["failures"]["unlike"]:
        assert result["error"] == "ConfigError"
        assert "Process 1 of 2 has other settings, data, weights" in result["message"]


def test_a_process_without_a_part_takes_part_in_the_sum(report):
    alone = values(report["failures"]["lonely 1"])[0]
    for found in values(report["failures"]["lonely 2"]):
        assert found["bits"] == alone["bits"]
