"""``manifest.json``: what went into a run, what came out of it, and what it ran on."""

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from hone.core.files import sha256_file
from hone.recipes.runner import Progress

_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors")


def run_manifest(
    out: Path,
    inputs: Mapping[str, Any],
    outputs: Iterable[Path],
    done: Progress,
    libraries: Iterable[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """The content of a run's manifest.

    Args:
        outputs: files in ``out``, which are named with their hashes.
        libraries: those whose version matters beside the usual ones.
        more: what this kind of run has to say too.
    """
    import torch

    return {
        "hone": metadata.version("hone-llm"),
        **more,
        "inputs": dict(inputs),
        "stages": done.stages,
        "outputs": {file.relative_to(out).as_posix(): sha256_file(file) for file in outputs},
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "libraries": {name: metadata.version(name) for name in (*_LIBRARIES, *libraries)},
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
