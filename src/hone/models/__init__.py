"""Architectures, their configuration, the cache protocol, and checkpoint directories.

Here: modules with Hugging Face names, and reading and writing what transformers reads and writes.
Not here: arithmetic (kernels), quantized layers (quant), generation (engine), training (train).

Use::

    model = LlamaForCausalLM(LlamaConfig(...), dtype=torch.float32)
    model.initialise(seed=0)
    model.packed_loss(batch).backward()              # summed loss over a pack, no padding
    model(input_ids, attention_mask, cache).logits   # [B, T, V]; ContiguousCache(config, B, S)
    save_checkpoint("out", model, tokenizer)
    model = load_model("out", dtype="auto")

The seams: ``Attend`` decides which tokens see which (a cache of another layout is an ``attend``
given to ``model.model``), ``kernels.project`` calls any module in a linear layer's place, and
``register_quantization`` names the layers that a quantized directory fills.
"""

from hone.models.cache import Cache, ContiguousCache
from hone.models.checkpoint import (
    check_vocabulary,
    load_config,
    load_model,
    register_quantization,
    save_checkpoint,
    write_checkpoint,
)
from hone.models.config import LlamaConfig, RopeScaling
from hone.models.llama import Attend, CausalOutput, LlamaForCausalLM, PackedBatch

__all__ = [
    "Attend",
    "Cache",
    "CausalOutput",
    "ContiguousCache",
    "LlamaConfig",
    "LlamaForCausalLM",
    "PackedBatch",
    "RopeScaling",
    "check_vocabulary",
    "load_config",
    "load_model",
    "register_quantization",
    "save_checkpoint",
    "write_checkpoint",
]
