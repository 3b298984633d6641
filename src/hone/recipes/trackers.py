"""The trackers that a recipe or a command names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hone.train import Tracker


def make_trackers(names: Sequence[str], folder: Path, run: str) -> list["Tracker"]:
    """The trackers ``names``, writing into ``folder``.

    Raises:
        ConfigError: one of them is not installed.
    """
    from hone.train import TensorBoard, Tracker, Trackio

    made: list[Tracker] = []
    for name in names:
        place = folder / name
        made.append(TensorBoard(place) if name == "tensorboard" else Trackio(place, name=run))
    return made
