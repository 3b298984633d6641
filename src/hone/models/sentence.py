"""How a text's embedding is made of hidden states: the files of sentence-transformers.

``modules.json`` lists what is computed one after another, ``1_Pooling/config.json`` which hidden
states are taken.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json, write_json
from hone.models.config import ModelConfig, Pooling

MODULES = "modules.json"
_POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# The keys of older files, each true or false.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_sentence_files(directory: Path, config: ModelConfig) -> ModelConfig:
    """``config`` with the pooling that ``directory`` says, and the head "embedding"; unchanged
    where it says none.

    Raises:
        CheckpointError: broken files, or steps that hone does not compute.
    """
    file = directory / MODULES
    if not file.exists():
        return config
    modules = _read(file, list)
    if not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules):
        raise CheckpointError(f"{file}: expected a list of objects with a 'type'.")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds:
        return config
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{file}: the steps are {', '.join(kinds)}; hone computes Transformer, Pooling and "
            "perhaps Normalize. Load it with another head than 'embedding', or use another model."
        )
    folder = str(modules[1].get("path", ""))
    if Path(folder).name != folder:
        raise CheckpointError(f"{file} names {folder!r}, which lies outside its directory.")
    return replace(
        config,
        head="embedding",
        embedding_pooling=_pooling(directory / folder / "config.json"),
        unit_length="Normalize" in kinds,
    )


def write_sentence_files(directory: Path, config: ModelConfig) -> None:
    """Say in ``directory`` how ``config`` pools; sentence-transformers then computes the same."""
    package = "sentence_transformers.models."
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        directory / MODULES,
        [
            {"idx": number, "name": str(number), "path": path, "type": package + kind}
            for number, (path, kind) in enumerate(steps if config.unit_length else steps[:2])
        ],
    )
    pooling = "last" if config.embedding_pooling == "eos" else config.embedding_pooling
    (directory / "1_Pooling").mkdir()
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size}
        | {flag: _POOLINGS.get(mode) == pooling for flag, mode in _FLAGS.items()}
        | {"include_prompt": True},
    )


def copy_sentence_files(source: Path, target: Path) -> None:
    """Copy what :func:`read_sentence_files` reads of ``source``, with the folders that it names."""
    if not (source / MODULES).exists():
        return
    shutil.copyfile(source / MODULES, target / MODULES)
    for module in _read(source / MODULES, list):
        folder = str(module.get("path", "")) if isinstance(module, dict) else ""
        if folder and Path(folder).name == folder and (source / folder).is_dir():
            shutil.copytree(source / folder, target / folder)


def _pooling(file: Path) -> Pooling:
    """The pooling that ``1_Pooling/config.json`` asks for."""
    values = _read(file, dict)
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if values.get(flag) is True] or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            f"{file}: the pooling is {modes!r}; hone computes one of {', '.join(_POOLINGS)}. "
            "Load it with another head than 'embedding', or use another model."
        )
    return _POOLINGS[modes[0]]


def _read(file: Path, kind: type) -> Any:
    try:
        values = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(values, kind):
        raise CheckpointError(f"{file}: expected a JSON {'object' if kind is dict else 'list'}.")
    return values
