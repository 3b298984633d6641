"""A checkpoint directory, put on the hub in one commit."""

import json
import re
from pathlib import Path
from typing import Any

from hone.core.errors import CheckpointError, RequestError
from hone.core.hub.client import Hub, UnreachableError
from hone.core.hub.names import (
    CONFIG_FILES,
    INDEX,
    PICKLES,
    TOKENIZER_FILES,
    WEIGHTS,
    HubName,
    indexed_files,
    parse_name,
    with_scheme,
)

ADAPTER = "adapter_config.json"
_WORDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_OUR_WEIGHTS = re.compile(r"(adapter_)?model[^/]*\.safetensors(\.index\.json)?")


def checkpoint_files(directory: str | Path) -> list[Path]:
    """The files of the checkpoint in ``directory``, with its README and licence if it has them.

    Raises:
        CheckpointError: it is no checkpoint, a part of it is missing, or it holds a pickle.
    """
    folder = Path(directory)
    adapter = (folder / ADAPTER).is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint.")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds a pickle ({pickles[0]}), which can run code on the machine of whoever "
            f"reads it; take it out of the directory, weights belong into {WEIGHTS}."
        )
    if adapter:
        weights = ["adapter_model.safetensors"]
    elif (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        weights = [INDEX, *indexed_files(folder)]
    else:
        weights = [WEIGHTS]
    for name in weights:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a whole checkpoint: it has no {name}.")
        if name.endswith(".safetensors") and not _is_whole(folder / name):
            raise CheckpointError(
                f"{folder / name} is truncated or no safetensors file; save it again."
            )
    patterns = [*CONFIG_FILES, *TOKENIZER_FILES, *_WORDS, *weights]
    return sorted({file for name in patterns for file in folder.glob(name) if file.is_file()})


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says (the format's README, "Format")."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            return False
        try:
            header = json.loads(handle.read(length))
            ends = [
                entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return False
    return file.stat().st_size == 8 + length + max(ends, default=0)


def destination(name: str) -> HubName:
    """The repository that an upload to ``name`` goes to.

    Raises:
        RequestError: ``name`` cannot be a repository's, has no owner, or has a revision.
    """
    wanted = parse_name(with_scheme(name))
    if "/" not in wanted.repository:
        raise RequestError(
            f"{name!r} does not say whose it is; give hf://OWNER/{wanted.repository}."
        )
    if wanted.revision is not None:
        raise RequestError(f"{name!r}: an upload goes to the main branch; leave out the revision.")
    return wanted


def upload(
    directory: str | Path,
    name: str,
    *,
    card: str | None = None,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload a checkpoint",
) -> str:
    """Put the checkpoint in ``directory`` on the hub; returns its address there.

    The repository is made if there is none. Everything goes into one commit, so that nobody ever
    fetches half of it; the same commit removes weight files of an earlier upload that this one
    does not have, so that nobody loads old weights with a new config.

    Args:
        name: ``hf://org/name`` or ``org/name``.
        card: the text of ``README.md``, unless the directory has one of its own.
        private: make the repository private, and refuse one that is public.
        token: instead of the one that ``HF_TOKEN`` or ``hf auth login`` gives.
        message: the commit's.

    Raises:
        RequestError: ``name`` cannot be uploaded to, or its repository is public.
        CheckpointError: the directory is no whole checkpoint, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RepositoryNotFoundError

    wanted = destination(name)
    folder = Path(directory)
    sent: dict[str, Path | bytes] = {
        file.relative_to(folder).as_posix(): file for file in checkpoint_files(folder)
    }
    if card is not None:
        sent.setdefault("README.md", card.encode())
    hub = Hub.of_process(token=token)
    if hub.offline:
        raise UnreachableError(f"{wanted} cannot be written: {hub.unreachable()}.")
    with hub.explained(wanted):
        api = hub.api()
        old: list[str] = []
        try:
            there = api.model_info(wanted.repository)
        except RepositoryNotFoundError:
            api.create_repo(wanted.repository, private=private, exist_ok=True)
        else:
            if private and there.private is False:
                raise RequestError(
                    f"{wanted} is public: everybody could read what is uploaded. Say --public "
                    "(private=False) if that is meant, or choose another name."
                )
            old = [item.rfilename for item in there.siblings or ()]
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            for path, content in sent.items()
        ]
        operations += [
            CommitOperationDelete(path_in_repo=path)
            for path in old
            if _OUR_WEIGHTS.fullmatch(path) and path not in sent
        ]
        api.create_commit(wanted.repository, operations=operations, commit_message=message)
    return f"{hub.endpoint}/{wanted.repository}"
