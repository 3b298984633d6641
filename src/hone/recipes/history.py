"""Past runs: what is in a folder of runs, and how runs differ from one another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hone.core.errors import DataError, RequestError
from hone.core.files import read_json
from hone.evals.training_report import read_metrics, series
from hone.recipes.runner import RECIPE_FILE, STAGE_FILE

METRICS, RESULTS = "metrics.jsonl", "results.json"


@dataclass(frozen=True)
class PastRun:
    """What a run's folder tells, finished or not.

    Attributes:
        kind: ``text2sql``, ``pretrain`` or ``finetune``.
        state: ``finished``, or the stage that it stopped before.
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
        for file in (self.path / METRICS, self.path / "train" / METRICS):
            if file.is_file():
                return read_metrics(file)
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
        DataError: a run's ``recipe.json`` cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; give one that holds runs, or a run.")
    if (folder / RECIPE_FILE).is_file():
        return [read_run(folder)]
    found = [read_run(path) for path in folder.iterdir() if (path / RECIPE_FILE).is_file()]
    return sorted(found, key=lambda run: run.started, reverse=True)


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
    started = datetime.fromtimestamp(file.stat().st_mtime)
    return PastRun(path, _kind(values), _state(path), started, dict(_flat(values)))


def differences(runs: Sequence[PastRun]) -> dict[str, list[Any]]:
    """The settings that are not the same in all ``runs``, with the value in each."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: found for name, found in values.items() if any(v != found[0] for v in found)}


def _kind(values: Mapping[str, Any]) -> str:
    return str(values.get("kind", "text2sql"))


def _state(path: Path) -> str:
    if (path / RESULTS).is_file():
        return "finished"
    under_way = [
        folder
        for folder in path.iterdir()
        if folder.is_dir() and not (folder / STAGE_FILE).is_file() and any(folder.iterdir())
    ]
    names = {folder.name for folder in under_way}
    return "training" if "train" in names else "not finished"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
