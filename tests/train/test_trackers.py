import builtins

import pytest
from tiny import tiny_batches, tiny_model

from hone.core.errors import ConfigError
from hone.train import TensorBoard, Trackio, TrainConfig, train

CONFIG = TrainConfig(
    steps=9, warmup_steps=2, precision="fp32", log_every=2, checkpoint_every=4, evaluate_every=3
)


class Recorder:
    """Keeps what a tracker is given."""

    def __init__(self):
        self.records, self.closed = None, False

    def begin(self, kept):
        self.records = list(kept)

    def write(self, record):
        self.records.append(dict(record))

    def close(self):
        self.closed = True


def evaluate(model, step):
    return {"loss": step / 2}


def run(folder, tracker, stop=None, **options):
    def on_step(counters):
        if counters.step == stop:
            raise InterruptedError

    try:
        train(
            tiny_model(),
            tiny_batches(),
            CONFIG,
            folder,
            trackers=[tracker],
            evaluate=evaluate,
            on_step=on_step,
            **options,
        )
    except InterruptedError:
        assert stop is not None


@pytest.fixture
def broken_run(tmp_path):
    """Train with a tracker made anew for each of two attempts; the first is broken off."""

    def run_with(make):
        run(tmp_path / "run", make(), stop=7)  # its last line is of step 6, its checkpoint of 4
        run(tmp_path / "run", make())
        whole = Recorder()
        run(tmp_path / "whole", whole)
        return whole.records

    return run_with


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path, caplog, method):
    class Broken(Recorder):
        calls = 0

        def fail(self, *_):
            self.calls += 1
            raise OSError("no room for 가")

    broken = Broken()
    setattr(broken, method, broken.fail)
    run(tmp_path, broken)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8
    assert broken.calls == 1
    (warning,) = (r.getMessage() for r in caplog.records if r.name == "hone.train.following")
    assert warning.startswith("Broken follows the run no more (no room for 가). All lines are in")


def steps_and(name, records):
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


@pytest.mark.smoke
def test_a_tracker_is_told_what_was_kept(broken_run):
    made = []

    def make():
        made.append(Recorder())
        return made[-1]

    whole = broken_run(make)
    assert [record["step"] for record in whole] == [2, 3, 4, 6, 6, 8, 9, 9]
    assert [record["step"] for record in made[0].records] == [2, 3, 4, 6, 6]
    assert steps_and("loss", made[1].records) == steps_and("loss", whole)
    assert all(tracker.closed for tracker in made)


def test_tensorboard_has_each_figure_once(tmp_path, broken_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = broken_run(lambda: TensorBoard(tmp_path / "events"))
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    for name in ("loss", "held_out_loss", "lr"):
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert scalars == [(step, pytest.approx(x)) for step, x in steps_and(name, whole)]
    assert "step" not in found.Tags()["scalars"]


def test_a_fresh_run_has_tensorboard_to_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        run(tmp_path / "run", TensorBoard(tmp_path / "events"), fresh=True)
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [2, 4, 6, 8, 9]


def test_trackio_has_each_figure_once(tmp_path, broken_run, monkeypatch, capsys):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    place = tmp_path / "trackio"
    place.mkdir()
    for module in (trackio, trackio.sqlite_storage, trackio.utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", place, raising=False)
    # Another run of that name is somebody else's.
    other = Trackio(tmp_path / "elsewhere" / "run")
    other.begin([])
    other.write({"step": 1, "loss": 3.0})
    other.close()
    whole = broken_run(lambda: Trackio(tmp_path / "run"))
    runs = {run.config["folder"]: run for run in trackio.Api().runs("hone")}
    assert set(runs) == {str(tmp_path / "elsewhere" / "run"), str(tmp_path / "run")}
    assert len(trackio.Api().runs("hone")) == 2
    logs = SQLiteStorage.get_logs("hone", run_id=runs[str(tmp_path / "run")].id)
    for name in ("loss", "held_out_loss", "lr"):
        assert sorted(steps_and(name, logs)) == [
            (step, pytest.approx(x)) for step, x in steps_and(name, whole)
        ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("make", "package"), [(TensorBoard, "tensorboard"), (Trackio, "trackio")])
def test_what_is_not_installed_is_said(tmp_path, monkeypatch, make, package):
    real = builtins.__import__

    def missing(name, *rest):
        if package in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=f"is not installed.*pip install {package}"):
        make(tmp_path)
