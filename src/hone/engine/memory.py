"""How large the cache is, and what its blocks are called in."""

from hone.core.errors import CapacityError
from hone.engine.blocks import BlockPool
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache
from hone.kernels.device import free_memory
from hone.models import CausalLM, ModelConfig, Seq2SeqLM

_SHARE_OF_FREE = 1 / 3


def make_cache(
    model: CausalLM | Seq2SeqLM, options: EngineOptions, exact: bool
) -> tuple[PagedCache, BlockPool]:
    """The cache of a model and the pool of its blocks; for states, a block is a slot.

    Raises:
        CapacityError: there is no room for a single block, or none is left.
    """
    config, device = model.config, model.device
    dtype = model.dtype if options.cache_dtype == "auto" else options.cache_dtype
    if config.mixer != "attention":
        slots = options.max_running
        cache = PagedCache(config, 1, 1, dtype, device, exact, slots + 1)
        return cache, BlockPool(slots, 0)
    size = options.block_size
    bytes_each = PagedCache.block_bytes(config, size, dtype)
    most = _most_blocks(config, options)
    if options.cache_bytes is not None:
        count = options.cache_bytes // bytes_each - 1
    else:
        count = min(most, int(free_memory(device) * _SHARE_OF_FREE) // bytes_each - 1)
    if count < 1:
        asked = options.cache_bytes
        found = "is free" if asked is None else f"is given ({asked:,} bytes)"
        raise CapacityError(
            f"Keys and values of {size} positions take {bytes_each:,} bytes, two such blocks are "
            f"the least, and less {found}; give the cache more memory, or a smaller block_size."
        )
    cache = PagedCache(config, count + 1, size, dtype, device, exact)
    return cache, BlockPool(count, size, options.prefix_sharing)


def _most_blocks(config: ModelConfig, options: EngineOptions) -> int:
    """What all sequences could need at once."""
    positions = config.max_position_embeddings
    if config.encoder is not None:
        positions += config.encoder.max_position_embeddings
    return options.max_running * (-(-positions // options.block_size) + 1)
