"""Architectures, their configuration, contexts and caches, and checkpoint directories.

Here: modules, families of Hugging Face checkpoints, reading and writing their files.
Not here: arithmetic (kernels), quantized layers (quant), generation (engine), training (train).

Use::

    model = CausalLM(ModelConfig(...), dtype=torch.float32)
    model.initialise(seed=0)
    model.packed_loss(batch).backward()              # summed loss over a pack, no padding
    model(input_ids, attention_mask).logits          # [B, T, V]
    save_checkpoint("out", model, tokenizer)
    model = load_model("out", dtype="auto", head="classification")

The seams: a ``Context`` decides which tokens see which (a cache of any layout is one),
``kernels.project`` calls any module in a linear layer's place, and ``register_quantization`` names
the layers that a quantized directory fills.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hone.models.config import Experts, Head, ModelConfig, StateSpace
from hone.models.config_files import load_config, read_config, write_config
from hone.models.families import find_family, known_families
from hone.models.positions import (
    Alibi,
    Buckets,
    Learned,
    NoPositions,
    Rotary,
    Sinusoidal,
)

if TYPE_CHECKING:
    from hone.models.checkpoint import (
        check_vocabulary,
        save_checkpoint,
        write_checkpoint,
    )
    from hone.models.context import Context, Packed
    from hone.models.heads import make_model
    from hone.models.language import (
        Cache,
        CausalLM,
        LanguageModel,
        MaskedLM,
        PackedBatch,
        Seq2SeqLM,
    )
    from hone.models.loading import load_model, register_quantization
    from hone.models.model import Model, Output
    from hone.models.readers import Classifier, Embedder, TokenClassifier

__all__ = [
    "Alibi",
    "Buckets",
    "Cache",
    "CausalLM",
    "Classifier",
    "Context",
    "Embedder",
    "Experts",
    "Head",
    "LanguageModel",
    "Learned",
    "MaskedLM",
    "Model",
    "ModelConfig",
    "NoPositions",
    "Output",
    "Packed",
    "PackedBatch",
    "Rotary",
    "Seq2SeqLM",
    "Sinusoidal",
    "StateSpace",
    "TokenClassifier",
    "check_vocabulary",
    "find_family",
    "known_families",
    "load_config",
    "load_model",
    "make_model",
    "read_config",
    "register_quantization",
    "save_checkpoint",
    "write_checkpoint",
    "write_config",
]

# What needs torch is looked up on first use: what only reads a configuration starts without it.
_ROOMS = {
    "hone.models.checkpoint": ("check_vocabulary", "save_checkpoint", "write_checkpoint"),
    "hone.models.context": ("Context", "Packed"),
    "hone.models.heads": ("make_model",),
    "hone.models.language": (
        "Cache",
        "CausalLM",
        "LanguageModel",
        "MaskedLM",
        "PackedBatch",
        "Seq2SeqLM",
    ),
    "hone.models.loading": ("load_model", "register_quantization"),
    "hone.models.model": ("Model", "Output"),
    "hone.models.readers": ("Classifier", "Embedder", "TokenClassifier"),
}
_LAZY = {name: module for module, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
