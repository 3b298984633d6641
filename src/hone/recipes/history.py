"""Past runs: what is in a folder of runs, and how runs differ from one another."""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hone.core.errors import DataError, RequestError
from hone.core.files import read_json
from hone.evals.training_report import series
from hone.recipes.runner import LOCK, RECIPE_FILE

METRICS, RESULTS = "metrics.jsonl", "results.json"


@dataclass(frozen=True)
class PastRun:
    """What a run's folder tells, finished or not.

    Attributes:
        kind: ``text2sql``, ``pretrain`` or ``finetune``; ``?`` if it cannot be told.
        state: ``running``, ``finished``, ``stopped``, or ``damaged``: its settings are unreadable.
        started: when its settings were written.
        settings: those of ``recipe.json``, nested ones with dotted names.
    """

    path: Path
    kind: str
    state: str
    started: datetime
    settings: Mapping[str, Any]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, also of a run under way."""
        return [line for line in self._lines if isinstance(line, dict)]

    @property
    def unreadable_lines(self) -> int:
        """Lines of ``metrics.jsonl`` that are no JSON objects and are left out."""
        return sum(not isinstance(line, dict) for line in self._lines)

    @cached_property
    def _lines(self) -> list[Any]:
        # While a run trains, the file in its train/ is the newer one.
        for file in (self.path / "train" / METRICS, self.path / METRICS):
            if file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                # A last line without its end is still being written.
                return [_json(line) for line in text.split("\n")[:-1] if line.strip()]
        return []

    @cached_property
    def results(self) -> dict[str, Any]:
        """``results.json``, empty before the run has finished."""
        file = self.path / RESULTS
        return read_json(file) if file.is_file() else {}

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        return max((int(line["step"]) for line in self.metrics if "step" in line), default=0)

    def last(self, key: str) -> float | None:
        """The last value of ``key`` in the metrics."""
        points = series(self.metrics, key)
        return points[-1][1] if points else None

    @property
    def scores(self) -> dict[str, float]:
        """What the finished model was scored with on held-out data."""
        found: dict[str, float] = {}
        for split, shares in self.results.get("execution_accuracy", {}).items():
            found[f"execution, {split.replace('_', ' ')}"] = shares["all"]
        for name, pair in self.results.get("scores", {}).items():
            if pair.get("after") is not None:
                found[name] = pair["after"]
        return found

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        fields = asdict(self) | {"path": str(self.path), "started": self.started.isoformat()}
        return fields | {
            "steps": self.steps,
            "loss": self.last("loss"),
            "held_out_loss": self.last("held_out_loss"),
            "seconds": self.last("seconds"),
            "scores": self.scores,
        }


def find_runs(folder: str | Path) -> list[PastRun]:
    """The runs directly in ``folder``, the latest first; ``folder`` may be one itself.

    Raises:
        RequestError: there is no such folder.
        DataError: ``folder`` is a run, and its ``recipe.json`` cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; give one that holds runs, or a run.")
    if (folder / RECIPE_FILE).is_file():
        return [read_run(folder)]
    found = [_listed(path) for path in folder.iterdir() if (path / RECIPE_FILE).is_file()]
    return sorted(found, key=lambda run: run.started, reverse=True)


def _listed(path: Path) -> PastRun:
    """A run among others, which are listed even if this one is damaged."""
    try:
        return read_run(path)
    except DataError:
        return PastRun(path, "?", "damaged", _written(path / RECIPE_FILE), {})


def read_run(path: str | Path) -> PastRun:
    """The run in the folder ``path``.

    Raises:
        RequestError: it is no run.
        DataError: its ``recipe.json`` cannot be read.
    """
    path = Path(path)
    file = path / RECIPE_FILE
    if not file.is_file():
        raise RequestError(f"{path} is no run: it has no {RECIPE_FILE}.")
    values = read_json(file)
    if not isinstance(values, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(values).__name__}.")
    return PastRun(path, _kind(values), _state(path), _written(file), dict(_flat(values)))


def differences(runs: Sequence[PastRun]) -> dict[str, list[Any]]:
    """The settings that are not the same in all ``runs``, with the value in each, None for none.

    What only runs of another kind have is no difference; neither are name and kind.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return {
        name: [run.settings.get(name) for run in runs]
        for name in names
        if name not in ("name", "kind") and _differs(runs, name)
    }


def _differs(runs: Sequence[PastRun], name: str) -> bool:
    kinds = {run.kind for run in runs if name in run.settings}
    values = [run.settings.get(name) for run in runs if run.kind in kinds]
    return any(value != values[0] for value in values)


def _kind(values: Mapping[str, Any]) -> str:
    return str(values.get("kind", "text2sql"))


def _state(path: Path) -> str:
    if _is_locked(path / LOCK):
        return "running"
    return "finished" if (path / RESULTS).is_file() else "stopped"


def _is_locked(lock: Path) -> bool:
    """Whether a process holds the lock; the system takes it from one that has ended."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a run on a disk that cannot be locked, or none was ever held
    return False


def _written(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
