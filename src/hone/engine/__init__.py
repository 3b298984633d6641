"""Generation: the paged cache, the scheduler, the sampler, speculation, grammars, offline use.

Here: everything between token ids and token ids, and between a prompt and its text. Not here: how
a layer computes (models, kernels), number formats (quant), or a network protocol (serve).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hone.engine.engine import Engine
    from hone.engine.generate import Finished, GenerationResult, Stream
    from hone.engine.lm import LM, load
    from hone.engine.options import EngineOptions
    from hone.engine.params import Grammar, SamplingParams

# Where each public name lives: parameters and requests are to be had without torch.
_ROOMS = {
    "LM": "lm",
    "load": "lm",
    "Engine": "engine",
    "EngineOptions": "options",
    "Finished": "generate",
    "GenerationResult": "generate",
    "Stream": "generate",
    "Grammar": "params",
    "SamplingParams": "params",
}
__all__ = [
    "LM",
    "Engine",
    "EngineOptions",
    "Finished",
    "GenerationResult",
    "Grammar",
    "SamplingParams",
    "Stream",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"hone.engine.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'hone.engine' has no attribute {name!r}")
