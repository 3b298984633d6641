"""hone: small, specialised language models, from raw data to a served endpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hone.engine import LM, GenerationResult, SamplingParams, load

__version__ = "0.1.0"
__all__ = ["LM", "GenerationResult", "SamplingParams", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: `import hone` alone must not pay for torch.
    if name in __all__:
        from hone import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'hone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
