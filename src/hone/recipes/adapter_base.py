"""The base of an adapter as a card may name it: by its name on the hub, or by what it is."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hone.core.errors import RequestError
from hone.core.files import read_json
from hone.core.hub.names import SCHEME, parse_name, with_scheme

_KEY = "base_model_name_or_path"
# As the hub's library names a repository's directory in its cache.
_CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/")


def hub_name(adapter: Mapping[str, Any], directory: Path) -> str | None:
    """``org/name`` of the base on the hub, also of one in the hub's cache; None for any other
    directory, which is nobody's business.

    Args:
        adapter: the content of ``adapter_config.json``.
        directory: where that lies.
    """
    base = adapter.get(_KEY)
    if not isinstance(base, str):
        return None
    cached = _CACHED.search(base)
    text = cached[1].replace("--", "/") if cached else with_scheme(base)
    local = any(place.exists() for place in (Path(text), directory / text))
    if local and not text.startswith(SCHEME) and not cached:
        return None
    try:
        repository = parse_name(text).repository
    except RequestError:
        return None
    return repository if "/" in repository else None


def base_config(adapter: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The content of the base's ``config.json``; nothing where it is not on this machine.

    Raises:
        DataError: the file is broken.
    """
    base = adapter.get(_KEY)
    if not isinstance(base, str):
        return {}
    # Joined with an absolute path, the first is that path.
    beside, here = directory / base, Path(base)
    for folder in (beside, beside / "checkpoint", here, here / "checkpoint"):
        file = folder / "config.json"
        if file.is_file():
            values = read_json(file)
            return values if isinstance(values, dict) else {}
    return {}
