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

from hone.models.checkpoint import (
    check_vocabulary,
    load_config,
    read_config,
    save_checkpoint,
    write_checkpoint,
    write_config,
)
from hone.models.config import Experts, Head, ModelConfig, StateSpace
from hone.models.context import Context, Packed
from hone.models.families import find_family, known_families
from hone.models.heads import make_model
from hone.models.language import Cache, CausalLM, LanguageModel, MaskedLM, PackedBatch, Seq2SeqLM
from hone.models.loading import load_model, register_quantization
from hone.models.model import Model, Output
from hone.models.positions import (
    Alibi,
    Buckets,
    Learned,
    NoPositions,
    Rotary,
    Sinusoidal,
)
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
