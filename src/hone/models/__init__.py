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
from hone.models.llama import CausalOutput, LlamaForCausalLM, PackedBatch

__all__ = [
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
