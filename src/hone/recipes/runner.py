"""The stage runner: does what is not done yet, and knows what is.

A stage is done when its folder holds ``stage.json`` with the key that the stage would have now. The
key covers the stage's settings, its input files' hashes and the keys of the stages before it, so a
changed setting redoes that stage and those after it.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hone.core.errors import DataError, HoneError
from hone.core.files import atomic_dir, make_directory, read_json, remove_leftovers, write_json

STAGE_FILE = "stage.json"
RECIPE_FILE = "recipe.json"
LOCK = ".lock"
# Everything that a run writes, and so everything that starting over deletes.
FOLDERS = (
    "database",
    "questions",
    "corpus",
    "tokenizer",
    "before",
    "train",
    "checkpoint",
    "adapter",
    "medusa",
    "after",
    "eval",
    "int8",
    "eval-int8",
)
FILES = ("metrics.jsonl", "results.json", "report.html", "manifest.json", RECIPE_FILE)
WRITTEN = frozenset((*FOLDERS, *FILES))


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: the folder that it writes.
        settings: everything that the result depends on beside the earlier stages.
        work: writes the result into the folder that it is given.
        in_place: the work keeps its own unfinished state in the folder and resumes from it.
        check: called before anything of an earlier run is replaced; raises if the work cannot be
            done.
    """

    name: str
    settings: Mapping[str, Any]
    work: Callable[[Path], None]
    in_place: bool = False
    check: Callable[[], None] = lambda: None


@dataclass
class Progress:
    """What a run has done, for the manifest: the key and the seconds of each stage."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Working time of all stages, over every start of the run."""
        return sum(stage["seconds"] for stage in self.stages.values())


def stage_key(stage: Stage, previous: str) -> str:
    """The key of ``stage`` after a stage with the key ``previous``."""
    text = json.dumps([previous, stage.name, stage.settings], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(directory: Path) -> dict[str, Any] | None:
    file = directory / STAGE_FILE
    if not file.is_file():
        return None
    try:
        value = read_json(file)
    except DataError:
        return None  # a damaged marker: the stage is done again
    return value if isinstance(value, dict) and {"key", "seconds"} <= value.keys() else None


def run_stages(
    stages: list[Stage],
    out: Path,
    fresh: bool = False,
    prepare: Callable[[], None] = lambda: None,
) -> Progress:
    """Run the stages that are not done in ``out``, in order, after ``prepare`` with ``out`` there.

    Raises:
        HoneError: a stage failed; what was finished stays, and the same call goes on from there.
    """
    _refuse_foreign(out)
    make_directory(out)
    with _alone(out):
        if fresh:
            for item in out.iterdir():
                if item.name in WRITTEN:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
        remove_leftovers(out)
        prepare()
        done = Progress()
        key = ""
        for stage in stages:
            key = stage_key(stage, key)
            directory = out / stage.name
            finished = _finished(directory)
            if finished is None or finished["key"] != key:
                stage.check()
                finished = _run(stage, directory, key)
            done.stages[stage.name] = finished
        return done


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run's lock; the system gives it back even when the process is killed."""
    with open(out / LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HoneError(
                f"Another hone is working in {out}. Wait for it, or choose another folder with -o."
            ) from error
        yield


def _run(stage: Stage, directory: Path, key: str) -> dict[str, Any]:
    start = time.monotonic()
    if not stage.in_place:
        with atomic_dir(directory) as temporary:
            stage.work(temporary)
            record = {"key": key, "seconds": round(time.monotonic() - start, 2)}
            write_json(temporary / STAGE_FILE, record)
        return record
    # Unfinished work of another key is of no use, and its clock file would lie.
    clock = directory / "started.json"
    known = read_json(clock) if clock.is_file() else {}
    if known.get("key") != key:
        shutil.rmtree(directory, ignore_errors=True)
        make_directory(directory)
        write_json(clock, {"key": key})
    remove_leftovers(directory)
    stage.work(directory)
    record = {"key": key, "seconds": round(time.monotonic() - start, 2)}
    write_json(directory / STAGE_FILE, record)
    return record


def _refuse_foreign(out: Path) -> None:
    """Never write among files, or delete any, that no run of ours has written."""
    if not out.is_dir() or (out / RECIPE_FILE).is_file():
        return
    if any(item.name != LOCK for item in out.iterdir()):
        raise HoneError(
            f"{out} is not empty and not a run of hone (it has no {RECIPE_FILE}). "
            "Choose another folder with -o."
        )
