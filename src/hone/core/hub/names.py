"""How a model on the hub is named, and which of its files make a checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path

from hone.core.errors import CheckpointError, DataError, RequestError
from hone.core.files import read_json

SCHEME = "hf://"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Patterns as the hub's library reads them: a star also spans slashes.
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
CHECKPOINT_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, *WEIGHT_FILES)
# Weights for other programs in the same repository: the same numbers again, in another form.
FOREIGN_FILES = ("*/*.safetensors", "*/*.safetensors.index.json", "consolidated*.safetensors")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_PART}/)?{_PART}")
_LONGEST = 96
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
RULE = (
    'a name on the hub is "org/name" of letters, digits, "-", "_" and ".", as in '
    "hf://org/name or hf://org/name@revision"
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub and, if one was named, its revision."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{revision}"


def with_scheme(name: str | Path) -> str:
    """``name`` as it was typed: a :class:`pathlib.Path` folds the slashes of ``hf://`` into one."""
    return re.sub(r"^hf:/(?!/)", SCHEME, str(name))


def parse_name(text: str) -> HubName:
    """Read ``hf://org/name[@revision]``, ``org/name[@revision]`` or ``name[@revision]``.

    Raises:
        RequestError: it cannot be the name of a repository, or of a revision.
    """
    repository, sign, revision = text.removeprefix(SCHEME).partition("@")
    if (
        len(repository) > _LONGEST
        or not _REPOSITORY.fullmatch(repository)
        # The first would be ambiguous in the cache, the others in a path or an address.
        or any(sign in repository for sign in ("--", ".."))
        or repository.endswith(".git")
    ):
        raise RequestError(f"{text!r} cannot be the name of a model: {RULE}.")
    if sign and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise RequestError(
            f"{text!r}: {revision!r} cannot be a revision; give a branch, a tag or a commit."
        )
    return HubName(repository, revision or None)


def indexed_files(directory: Path) -> list[str]:
    """The weight files that the index of a sharded checkpoint names.

    Raises:
        CheckpointError: the index is broken, or names something outside the directory.
    """
    index = directory / INDEX
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} has no readable 'weight_map' ({error}).") from error
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its directory.")
    return names
