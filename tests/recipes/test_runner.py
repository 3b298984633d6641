import json

import pytest

from hone.core.errors import HoneError
from hone.recipes import runner
from hone.recipes.runner import RECIPE_FILE, STAGE_FILE, Stage

pytestmark = pytest.mark.smoke


def run_stages(stages, out, fresh=False):
    """As a run does it: the recipe is written first."""
    return runner.run_stages(
        stages, out, fresh, prepare=lambda: (out / RECIPE_FILE).write_text("{}")
    )


class Recorder:
    """Stages that write down what they did."""

    def __init__(self):
        self.done = []

    def stage(self, name, value=0, in_place=False, fail=False):
        def work(folder):
            self.done.append(name)
            (folder / "a.txt").write_text(str(value))
            if fail:
                raise HoneError("broken")

        return Stage(name, {"value": value}, work, in_place=in_place)


def test_only_what_changed_and_what_follows_is_done_again(tmp_path):
    recorder = Recorder()
    first = run_stages([recorder.stage(name) for name in "abc"], tmp_path)
    assert recorder.done == ["a", "b", "c"]
    again = run_stages([recorder.stage(name) for name in "abc"], tmp_path)
    assert recorder.done == ["a", "b", "c"]
    assert again.stages == first.stages
    run_stages([recorder.stage(name, value=int(name == "b")) for name in "abc"], tmp_path)
    assert recorder.done == ["a", "b", "c", "b", "c"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_failed_stage_is_not_done(tmp_path, in_place):
    recorder = Recorder()
    with pytest.raises(HoneError, match="broken"):
        run_stages([recorder.stage("a", in_place=in_place, fail=True)], tmp_path)
    assert not (tmp_path / "a" / STAGE_FILE).exists()
    # What works in place keeps its unfinished state; what does not leaves nothing.
    assert (tmp_path / "a" / "a.txt").exists() == in_place
    run_stages([recorder.stage("a", in_place=in_place)], tmp_path)
    assert recorder.done == ["a", "a"]


def test_unfinished_work_under_other_settings_is_thrown_away(tmp_path):
    recorder = Recorder()
    with pytest.raises(HoneError):
        run_stages([recorder.stage("a", 1, in_place=True, fail=True)], tmp_path)
    (tmp_path / "a" / "state").write_text("old")
    run_stages([recorder.stage("a", 2, in_place=True)], tmp_path)
    assert not (tmp_path / "a" / "state").exists()


def test_a_damaged_marker_means_not_done(tmp_path):
    recorder = Recorder()
    run_stages([recorder.stage("a")], tmp_path)
    (tmp_path / "a" / STAGE_FILE).write_text("{")
    run_stages([recorder.stage("a")], tmp_path)
    assert recorder.done == ["a", "a"]
    assert json.loads((tmp_path / "a" / STAGE_FILE).read_text())["key"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_other_files_is_left_alone(tmp_path, fresh):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("years of work")
    with pytest.raises(HoneError, match="not a run of hone"):
        run_stages([Recorder().stage("train")], tmp_path, fresh)
    assert [item.name for item in tmp_path.rglob("*")] == ["train", "thesis.txt"]


def test_fresh_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    recorder = Recorder()
    run_stages([recorder.stage("train"), recorder.stage("eval")], tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    run_stages([recorder.stage("train")], tmp_path, fresh=True)
    assert recorder.done == ["train", "eval", "train"]
    assert (tmp_path / "thesis.txt").exists()
    assert not (tmp_path / "eval").exists()


def test_two_at_once_do_not_meet(tmp_path):
    def work(folder):
        with pytest.raises(HoneError, match="Another hone is working in"):
            run_stages([Recorder().stage("a")], tmp_path)

    run_stages([Stage("a", {}, work)], tmp_path)
