"""Where the text side of a model lies; nothing here needs torch."""

from pathlib import Path

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json
from hone.core.hub import find_checkpoint, resolve

_ADAPTER = "adapter_config.json"


def text_directory(model: str | Path) -> Path:
    """The directory with the tokenizer and the chat template of a checkpoint, run or adapter.

    An adapter has its own, or that of its base.

    Raises:
        CheckpointError: there is no such model, or no base of the adapter.
    """
    path = resolve(model)
    adapter = next((x for x in (path, path / "adapter") if (x / _ADAPTER).is_file()), None)
    if adapter is None:
        return find_checkpoint(path)
    if (adapter / "tokenizer.json").is_file():
        return adapter
    try:
        base = read_json(adapter / _ADAPTER).get("base_model_name_or_path")
    except (DataError, AttributeError) as error:
        raise CheckpointError(f"{adapter / _ADAPTER} is not a JSON object.") from error
    if not isinstance(base, str):
        raise CheckpointError(
            f"{adapter / _ADAPTER}: base_model_name_or_path is missing; write the directory or "
            "the name of the model there that the adapter is for."
        )
    beside = adapter / base
    return find_checkpoint(beside if beside.is_dir() else base)
