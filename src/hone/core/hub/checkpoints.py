"""Where the checkpoint lies in what a name means."""

from collections.abc import Sequence
from pathlib import Path

from hone.core.errors import CheckpointError
from hone.core.hub.download import resolve
from hone.core.hub.names import CHECKPOINT_FILES


def find_checkpoint(path: str | Path, *, files: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """The checkpoint directory that ``path`` means: itself, or ``checkpoint/`` in a run.

    A name on the hub, ``hf://org/name`` or ``org/name``, means its files in the cache.

    Args:
        files: patterns of what is needed from the hub, as in :func:`resolve`.

    Raises:
        CheckpointError: there is none.
    """
    path = resolve(path, files=files)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the directory of a checkpoint or a run.")
    if (path / "config.json").is_file():
        return path
    if (path / "checkpoint" / "config.json").is_file():
        return path / "checkpoint"
    if any((folder / "adapter_config.json").is_file() for folder in (path, path / "adapter")):
        raise CheckpointError(
            f"{path} is an adapter and no whole model; make one with `hone merge {path} -o DIR`."
        )
    if (path / "recipe.json").is_file():
        raise CheckpointError(
            f"{path} is a run whose model is not trained yet; finish it with the command that "
            "started it."
        )
    raise CheckpointError(
        f"{path} is neither a checkpoint (it has no config.json) nor a run (it has no checkpoint/)."
    )
