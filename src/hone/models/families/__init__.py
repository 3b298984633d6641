"""Families of Hugging Face checkpoints, one file each, named as its ``model_type``.

Here: how a family's configuration and weight names map to the shared ones.
Not here: layers (``hone.models.blocks`` and its neighbours), or reading files.
"""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from typing import Any

from hone.core.errors import CheckpointError
from hone.models.config import ModelConfig
from hone.models.family import Family, unknown_family
from hone.models.keys import Keys


@cache
def known_families() -> tuple[str, ...]:
    """The ``model_type`` of every family, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_family(model_type: Any, where: str = "config.json") -> Family:
    """The family of ``model_type``.

    Raises:
        CheckpointError: there is none; names ``where`` it was asked for, and what is near.
    """
    if model_type not in known_families():
        raise unknown_family(model_type, known_families(), where)
    module = importlib.import_module(f"{__name__}.{model_type}")
    family: Family = module.FAMILY
    return family


def best_family(config: ModelConfig) -> str:
    """The family whose files say all of ``config``, so that other programs can open them.

    "hone" where no other does: its files open here only.
    """
    for model_type in ("llama", *known_families()):
        if model_type != "hone" and _says_all(find_family(model_type), config):
            return model_type
    return "hone"


def _says_all(family: Family, config: ModelConfig) -> bool:
    config = replace(config, model_type=family.model_type, extra={})
    try:
        values = family.write(config)
        again = family.read(Keys(values, "config.json"))
    except CheckpointError:
        return False
    return replace(again, model_type=family.model_type, head=config.head) == config
