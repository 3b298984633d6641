import fcntl
import json
import os

import pytest
from typer.testing import CliRunner

from hone.cli.app import app
from hone.core.errors import DataError, RequestError
from hone.recipes.history import differences, find_runs, read_run


@pytest.fixture
def runs(tmp_path):
    for number, rate in enumerate((0.1, 0.2)):
        folder = tmp_path / f"run{number}"
        (folder / "train").mkdir(parents=True)
        recipe = {"name": "x", "kind": "finetune", "train": {"lr": rate, "steps": 5}}
        (folder / "recipe.json").write_text(json.dumps(recipe))
        os.utime(folder / "recipe.json", (number + 1, number + 1))
        lines = [{"step": 5, "loss": 2.0 + number, "seconds": 3.0}, {"step": 5, "held_out_loss": 4}]
        (folder / "train" / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    scores = {"scores": {"accuracy": {"before": 0.25, "after": 0.5}}}
    (tmp_path / "run1" / "results.json").write_text(json.dumps(scores))
    (tmp_path / "not a run").mkdir()
    return tmp_path


def test_runs_are_found_latest_first_also_under_way(runs):
    found = find_runs(runs)
    assert [run.path.name for run in found] == ["run1", "run0"]
    assert [run.state for run in found] == ["finished", "stopped"]
    assert found[1].last("loss") == 2.0
    assert found[0].scores == {"accuracy": 0.5}
    assert find_runs(runs / "run0")[0].kind == "finetune"


def test_only_what_differs_is_told(runs):
    both = [read_run(runs / "run0"), read_run(runs / "run1")]
    assert differences(both) == {"train.lr": [0.1, 0.2]}


def test_what_is_no_run_is_one_sentence(runs):
    with pytest.raises(RequestError, match="no run"):
        read_run(runs / "not a run")
    with pytest.raises(RequestError, match="not a folder"):
        find_runs(runs / "nowhere")


def test_the_command_lists_compares_and_draws(runs, tmp_path):
    result = CliRunner().invoke(app, ["runs", str(runs)])
    assert result.exit_code == 0
    assert "finetune" in result.output
    one, two = str(runs / "run0"), str(runs / "run1")
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["runs", one, two, "--report", str(page)])
    assert "train.lr" in result.output
    assert "run1" in page.read_text()
    result = CliRunner().invoke(app, ["runs", str(runs), "--json"])
    assert [record["steps"] for record in json.loads(result.output)] == [5, 5]


def test_a_run_is_running_while_its_lock_is_held(runs):
    with open(runs / "run0" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(runs / "run0").state == "running"
    assert read_run(runs / "run0").state == "stopped"


def test_a_line_that_is_being_written_is_not_read_and_a_broken_one_is_told(runs):
    with open(runs / "run0" / "train" / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": 6, "loss"\n[1]\n{"step": 7, "loss": 1.5, "seconds": 4}\n{"step": 8, "l'
        )
    run = read_run(runs / "run0")
    assert (run.steps, run.last("loss"), run.unreadable_lines) == (7, 1.5, 2)
    result = CliRunner().invoke(app, ["runs", str(runs)])
    assert "run0: 2 unreadable lines" in result.output


def test_a_damaged_run_is_listed_among_the_others(runs):
    (runs / "run0" / "recipe.json").write_text("{")
    assert [run.state for run in find_runs(runs)] == ["damaged", "finished"]
    with pytest.raises(DataError, match=r"recipe\.json"):
        read_run(runs / "run0")


def test_eighty_columns_are_enough(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, ["runs", str(runs)]).output.splitlines()
    assert len(lines) == 4
    assert "0.5 accuracy" in lines[2]
    assert max(map(len, lines)) <= 80


def test_settings_of_another_kind_are_no_difference(runs):
    recipe = {"name": "y", "data": {"database": "sample"}, "train": {"lr": 0.1, "steps": 6}}
    (runs / "not a run" / "recipe.json").write_text(json.dumps(recipe))
    several = [read_run(runs / name) for name in ("run0", "run1", "not a run")]
    assert differences(several) == {"train.lr": [0.1, 0.2, 0.1], "train.steps": [5, 5, 6]}


def test_a_run_has_one_colour_in_all_pictures(runs, tmp_path):
    page = tmp_path / "page.html"
    for number, name in enumerate(("run0", "run1")):
        lines = [{"step": s, "loss": 2.0 + s} for s in (1, 2)]
        lines += [{"step": s, "held_out_loss": 2.0 + s} for s in (1, 2) if number]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (runs / name / "train" / "metrics.jsonl").write_text(text)
    command = ["runs", str(runs / "run0"), str(runs / "run1"), "--report", str(page)]
    assert CliRunner().invoke(app, command).exit_code == 0
    alone = page.read_text().split("Held-out loss</h2>")[1].split("</figure>")[0]
    assert 'class="line series-1"' in alone
    assert "series-0" not in alone
