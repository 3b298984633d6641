"""What a run was made for: its database and its glossary. Nothing here needs torch."""

import json
from pathlib import Path
from typing import Any

from hone.core.errors import CheckpointError
from hone.core.files import read_json
from hone.recipes.runner import RECIPE_FILE
from hone.recipes.stages import SAMPLE, SAMPLE_FILE
from hone.sql.sample import SAMPLE_GLOSSARY

_LONGEST = 60  # characters of a question that is shown as an example


def run_database(run: Path) -> Path:
    """The database that a run was made for.

    Raises:
        CheckpointError: ``run`` is no run, so nobody knows which database it is for.
    """
    database = _run_data(run)["database"]
    return run / "database" / SAMPLE_FILE if database == SAMPLE else Path(database)


def run_glossary(run: Path) -> Path | None:
    """The glossary that a run was made with, if any."""
    if not (run / RECIPE_FILE).is_file():
        return None
    data = _run_data(run)
    if data["glossary"] is None:
        return SAMPLE_GLOSSARY if data["database"] == SAMPLE else None
    return Path(data["glossary"])


def _run_data(run: Path) -> dict[str, Any]:
    file = run / RECIPE_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{run} does not say which database it is for (it has no {RECIPE_FILE}). "
            "Name one with --db FILE."
        )
    return read_json(file)["data"]


def run_questions(run: Path, count: int = 6) -> tuple[str, ...]:
    """A few of the questions that a run kept from training, from its first to its last.

    Args:
        count: how many; none where the run has none.
    """
    file = run / "questions" / "held_out.jsonl"
    if not file.is_file():
        return ()
    with file.open(encoding="utf-8") as lines:
        found = [
            question for line in lines if len(question := json.loads(line)["question"]) <= _LONGEST
        ]
    # Languages may alternate from line to line: an odd step meets all of them.
    return tuple(dict.fromkeys(found[:: len(found) // count | 1]))[:count]
