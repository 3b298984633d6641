"""One way from a name to a directory.

A model is named by a local path, by ``hf://org/name`` or by ``org/name`` alone, each of the last
two with ``@revision`` if wanted. A local path wins over a name that looks the same. What comes from
the hub lies in the cache that other tools share (``HF_HUB_CACHE``), in its layout.
"""

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from hone.core.errors import CapacityError, CheckpointError, RequestError
from hone.core.hub.client import Hub, UnreachableError
from hone.core.hub.names import (
    CHECKPOINT_FILES,
    FOREIGN_FILES,
    INDEX,
    PICKLES,
    RULE,
    SCHEME,
    WEIGHT_FILES,
    WEIGHTS,
    HubName,
    indexed_files,
    parse_name,
    with_scheme,
)
from hone.core.progress import progress

Patterns = tuple[str, ...]


def resolve(
    name: str | Path,
    *,
    files: Sequence[str] = CHECKPOINT_FILES,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The directory that ``name`` means; what is missing of it is fetched from the hub.

    Args:
        name: a local path, ``hf://org/name[@revision]``, or the same without ``hf://``.
        files: patterns of what is needed from the hub, e.g. :data:`CONFIG_FILES`.
        revision: a branch, tag or commit, for a name that does not say one.
        cache_dir: instead of ``HF_HUB_CACHE``.

    Raises:
        CheckpointError: there is no such thing; the message says where it was looked for.
        CapacityError: the disk has no room for it.
    """
    text = with_scheme(name)
    absent = ""
    if not text.startswith(SCHEME):
        local = Path(text).expanduser()
        if os.path.exists(local):
            if revision is not None:
                raise CheckpointError(f"{text} is local and has no revision {revision!r}.")
            return local
        if text.startswith((".", "/", "~")) or text.partition("@")[0].count("/") > 1:
            hint = RULE if "://" in text else "give a checkpoint or a run, or hf://org/name"
            raise CheckpointError(f"{text} does not exist; {hint}.")
        absent = f"{text} does not exist here, "
    try:
        wanted = parse_name(text)
        if revision is not None:
            if wanted.revision not in (None, revision):
                raise RequestError(f"{text!r} and the revision {revision!r} contradict each other.")
            wanted = parse_name(f"{SCHEME}{wanted.repository}@{revision}")
    except RequestError as error:
        raise CheckpointError(f"{absent}{'and ' if absent else ''}{error}") from error
    return _fetch(Hub.of_process(cache_dir), wanted, tuple(files), absent)


def _fetch(hub: Hub, wanted: HubName, files: Patterns, absent: str) -> Path:
    from huggingface_hub.errors import RevisionNotFoundError

    if hub.offline:
        return _cached(hub, wanted, files, absent, hub.unreachable())
    try:
        with hub.explained(wanted, absent):
            listed = hub.api().model_info(
                wanted.repository, revision=wanted.revision, files_metadata=True
            )
    except UnreachableError as error:
        reason = hub.unreachable(error.__cause__)  # type: ignore[arg-type]
        return _cached(hub, wanted, files, absent, reason)
    except CheckpointError as error:
        if isinstance(error.__cause__, RevisionNotFoundError):
            raise
        # What was fetched before stays of use when a token has expired or the hub has trouble.
        try:
            return _cached(hub, wanted, files, absent, "")
        except CheckpointError:
            raise error from error.__cause__
    sizes = {item.rfilename: item.size or 0 for item in listed.siblings or ()}
    needed = _needed(wanted, sizes, files)
    left = sum(sizes[name] for name in needed if not _has(hub, wanted, name, listed.sha))
    _check_room(hub, wanted, left)
    with hub.explained(wanted, absent), _bar(wanted, left) as bar:
        return _snapshot(hub, wanted, files, tqdm_class=bar)


def _snapshot(hub: Hub, wanted: HubName, files: Patterns, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        wanted.repository,
        revision=wanted.revision,
        cache_dir=hub.cache,
        endpoint=hub.endpoint,
        token=hub.token,
        allow_patterns=list(files),
        ignore_patterns=list(FOREIGN_FILES),
        library_name="hone",
        **options,
    )
    return Path(found)


def _cached(hub: Hub, wanted: HubName, files: Patterns, absent: str, reason: str) -> Path:
    """What the cache holds of ``wanted``, if it is all that is needed; ``reason``: why only it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = _snapshot(hub, wanted, files, local_files_only=True)
        lack = _lacks(found, files)
        missing = f"is only partly in the cache ({found} has no {lack})" if lack else ""
        cause = None
    except LocalEntryNotFoundError as error:
        part, cause = getattr(error, "snapshot_path", None), error
        missing = f"is not in the cache ({hub.cache})"
        if part is not None:
            missing = f"is only partly in the cache ({part})"
    if not missing:
        return found
    raise CheckpointError(
        f"{absent}{'it' if absent else wanted} {missing}, and {reason}. Fetch it where there is a "
        "network, or give the directory of a checkpoint."
    ) from cause


def _lacks(directory: Path, files: Patterns) -> str:
    """A file that should be in the snapshot and is not; the library knows it of its own only."""
    if "config.json" in files and not any(directory.glob("*config.json")):
        return "config.json"
    if not set(WEIGHT_FILES) <= set(files):
        return ""
    if (directory / INDEX).is_file() and not (directory / WEIGHTS).is_file():
        names = indexed_files(directory)
        return next((name for name in names if not (directory / name).is_file()), "")
    return "" if any(directory.glob("*.safetensors")) else "*.safetensors"


def _needed(wanted: HubName, names: Iterable[str], files: Patterns) -> list[str]:
    """The files of the repository that the patterns ask for.

    Raises:
        CheckpointError: there are none, or a pickle where the weights should be.
    """
    names = list(names)
    needed = [name for name in names if _matches(name, files) and not _matches(name, FOREIGN_FILES)]
    if any(".." in PurePosixPath(name).parts for name in needed):
        raise CheckpointError(f"{wanted} names files outside its own directory; do not trust it.")
    pickles = [name for name in names if "/" not in name and name.endswith(PICKLES)]
    weights = [name for name in needed if name.endswith(".safetensors")]
    if set(WEIGHT_FILES) <= set(files) and pickles and not weights:
        raise CheckpointError(
            f"{wanted} holds its weights as a pickle ({pickles[0]}), which can run code when it is "
            "read, so it was not fetched. If you trust its author, convert it where transformers "
            'is installed: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{wanted.repository}').save_pretrained('DIRECTORY')\"."
        )
    if not needed:
        raise CheckpointError(
            f"{wanted} holds no checkpoint: none of its {len(names)} files is read here."
        )
    return needed


def _matches(name: str, patterns: Patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _has(hub: Hub, wanted: HubName, file: str, commit: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(wanted.repository, file, cache_dir=hub.cache, revision=commit)
    return isinstance(found, str)


def _check_room(hub: Hub, wanted: HubName, needed: int) -> None:
    place = next(folder for folder in (hub.cache, *hub.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CapacityError(
            f"{wanted} needs {needed:,} more bytes and the disk of {hub.cache} has {free:,}; free "
            "some space, or set HF_HUB_CACHE to another place."
        )


@contextmanager
def _bar(wanted: HubName, size: int) -> Iterator[type]:
    """A stand-in for the library's own bars that reports ``size`` bytes through ours."""
    from huggingface_hub.utils.tqdm import tqdm

    unit, scale = ("MB", 1_000_000) if size >= 10_000_000 else ("kB", 1_000)

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    if size == 0:
        yield Silent
        return
    with progress(f"Fetching {wanted.repository}", max(size // scale, 1), unit) as bar:
        lock = threading.Lock()
        done = 0.0

        class Counting(Silent):
            def __init__(self, *args: Any, **options: Any) -> None:
                # Of its several bars this one counts bytes that have come to lie on the disk.
                self.counts = options.get("name") == "huggingface_hub.snapshot_download"
                super().__init__(*args, **options)

            def update(self, n: float | None = 1) -> None:
                nonlocal done
                if self.counts:
                    with lock:
                        before, done = done, done + (n or 0)
                        bar.advance(int(done // scale) - int(before // scale))

        yield Counting
