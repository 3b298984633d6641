"""The model of the engine's process: read, measured and described. Runs in that process only."""

import time
from collections.abc import Mapping
from pathlib import Path

from hone.engine import LM, load
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache
from hone.serve.info import ModelInfo


def load_engine(
    model: str,
    name: str,
    options: EngineOptions,
    dtype: str = "auto",
    device: str = "cpu",
    exact: bool | None = None,
    adapters: Mapping[str, str] | None = None,
) -> tuple[Engine, ModelInfo]:
    """Read a checkpoint and make its engine.

    Args:
        model: as :func:`hone.load` takes it, and so are ``dtype``, ``device`` and ``exact``.
        name: what clients call it.
        adapters: directories of LoRA adapters by the names that requests choose them by.

    Raises:
        CheckpointError: a directory or one of its files is missing, broken or unknown.
        CapacityError: there is no memory for the cache.
    """
    lm = load(model, dtype, device, exact, options)
    engine = lm.engine()
    for adapter, path in (adapters or {}).items():
        engine.adapters.load(adapter, path)
    return engine, describe(lm, engine, name, tuple(adapters or ()))


def describe(lm: LM, engine: Engine, name: str, adapters: tuple[str, ...] = ()) -> ModelInfo:
    """What the server knows of a model."""
    config, options = lm.config, engine.options
    reader = config.encoder or config
    longest: int | None = reader.max_position_embeddings - (config.encoder is None)
    if reader.extrapolates:
        longest = None
    dtype = str(lm.model.dtype).removeprefix("torch.")
    kept = dtype if options.cache_dtype == "auto" else options.cache_dtype
    blocks = engine.stats().blocks
    quantization = config.quantization_config or {}
    return ModelInfo(
        name=name,
        context=config.max_position_embeddings,
        longest_prompt=longest,
        vocabulary=config.vocab_size,
        end_ids=tuple(sorted(lm.end_ids)),
        answer_start=None if lm.answer is None else lm.answer.start,
        embeds=lm.answer is None,
        adapters=adapters,
        created=_written(lm.path),
        dtype=dtype,
        quantization=quantization.get("quant_method"),
        speculation=options.speculation,
        policy=options.policy,
        exact=lm.exact,
        cache_dtype=kept,
        cache_bytes=blocks * PagedCache.block_bytes(config, options.block_size, kept),
        cache_tokens=blocks * options.block_size if config.mixer == "attention" else 0,
        block_size=options.block_size,
    )


def _written(directory: Path) -> int:
    try:
        return int((directory / "config.json").stat().st_mtime)
    except OSError:
        return int(time.time())
