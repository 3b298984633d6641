"""``config.json``, read and written; nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json
from hone.models.config import Head, ModelConfig
from hone.models.families import find_family
from hone.models.family import TRANSFORMERS_VERSION
from hone.models.keys import Keys
from hone.models.sentence import read_sentence_files

# Spellings of older releases, for which there is a newer one in what is written.
_OLD_KEYS = {"torch_dtype": "dtype", "rope_theta": "rope_parameters"}
_OLD_KEYS |= {"rope_scaling": "rope_parameters", "num_labels": "id2label"}


def read_config(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The architecture that the content of a ``config.json`` describes, in any layout.

    Args:
        where: the file's name for error messages.

    Raises:
        CheckpointError: an unknown family, a missing or wrong key, sizes that do not fit.
    """
    keys = Keys(values, where)
    family = find_family(values.get("model_type"), where)
    try:
        config = family.read(keys)
    except CheckpointError as error:
        message = str(error)
        if message.startswith(where):
            raise
        raise CheckpointError(f"{where}: {message}") from error
    return replace(
        config, model_type=family.model_type, head=family.head_of(keys), extra=dict(values)
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json`` as the current transformers writes it.

    Keys that were read and mean nothing here are kept.
    """
    family = find_family(config.model_type)
    values = config.extra | {
        "architectures": [family.architecture(config.head)],
        "dtype": config.dtype,
        "model_type": config.model_type,
        "transformers_version": TRANSFORMERS_VERSION,
    }
    values |= family.write(config)
    stale = {old for old, new in _OLD_KEYS.items() if old in values and new in values}
    return {key: values[key] for key in sorted(values) if key not in stale}


def load_config(directory: str | Path, head: Head | None = None) -> ModelConfig:
    """Read ``config.json`` of a checkpoint directory, and how its embeddings are pooled.

    Args:
        head: the one that is wanted. Pooling matters for embeddings only, and a directory that says
            how to pool is one of embeddings unless another head is asked for.

    Raises:
        CheckpointError: no directory, no or broken ``config.json``, an unknown architecture.
    """
    path = Path(directory)
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(f"{path} is no directory; a checkpoint is a directory of files.")
    if not file.exists():
        raise CheckpointError(f"{path} has no config.json, so it is not a checkpoint.")
    try:
        values = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}.")
    config = read_config(values, str(file))
    return read_sentence_files(path, config) if head in (None, "embedding") else config
