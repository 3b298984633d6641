import json

import pytest

from hone.core.errors import HoneError
from hone.recipes.runner import STAGE_FILE, Stage, run_stages

pytestmark = pytest.mark.smoke


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
    run_stages([recorder.stage(name, value=name == "b") for name in "abc"], tmp_path)
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


def test_fresh_deletes_a_run_and_nothing_else(tmp_path):
    recorder = Recorder()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HoneError, match="not a run of hone"):
        run_stages([recorder.stage("a")], tmp_path, fresh=True)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "recipe.json").write_text("{}")
    run_stages([recorder.stage("a")], tmp_path, fresh=True)
    assert not (tmp_path / "thesis.txt").exists()
