"""hone: small, specialised language models, from raw data to a served endpoint."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hone.engine import LM, EngineOptions, GenerationResult, Grammar, SamplingParams, load
    from hone.engine.pipelines import pipeline

__version__ = "0.1.0"
__all__ = [
    "LM",
    "EngineOptions",
    "GenerationResult",
    "Grammar",
    "SamplingParams",
    "__version__",
    "load",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    # Looked up on first use: `import hone` alone must not pay for torch.
    if name in __all__:
        room = "hone.engine.pipelines" if name == "pipeline" else "hone.engine"
        return getattr(import_module(room), name)
    raise AttributeError(f"module 'hone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
