"""The model of the engine's process: read, measured and described. Runs in that process only."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from hone.adapters import read_head
from hone.core.errors import ConfigError
from hone.engine import LM, load
from hone.engine.adapted import find_model, load_adapted
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.paged import PagedCache
from hone.engine.reader import EmbeddingEngine
from hone.kernels import preferred_dtype
from hone.models import ModelConfig, load_config, load_model
from hone.models.readers import Embedder
from hone.quant import Int8Activations, use_int8_activations
from hone.serve.info import ModelInfo


def load_engine(
    model: str,
    name: str,
    options: EngineOptions,
    dtype: str = "auto",
    device: str = "cpu",
    exact: bool | None = None,
    adapters: Mapping[str, str] | None = None,
    int8_activations: Int8Activations = False,
) -> tuple[Engine | EmbeddingEngine, ModelInfo]:
    """Read a checkpoint and make its engine: one that embeds texts where the files are of such a
    model (of sentence-transformers, or an encoder), and one that writes everywhere else.

    Args:
        model: as :func:`hone.load` takes it, and so are ``dtype``, ``device``, ``exact`` and
            ``int8_activations``.
        name: what clients call it.
        adapters: directories of LoRA adapters by the names that requests choose them by.

    Raises:
        CheckpointError: a directory or one of its files is missing, broken or unknown.
        CapacityError: there is no memory for the cache.
        ConfigError: an option is for models that write, and this one does not.
    """
    if _embeds(model):
        if adapters or options.speculation is not None:
            raise ConfigError(
                f"{model} embeds texts and writes none; leave --adapter and --speculation out."
            )
        return _reader(model, name, options, dtype, device, int8_activations)
    lm = load(model, dtype, device, exact, options, int8_activations)
    if exact and lm.row_counts() is None:
        raise ConfigError(
            "--exact: on this processor a product's bits depend on its number of rows, whatever "
            "that is, so that no output could be exact; leave the option out."
        )
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
        quantization=_quantization(config),
        speculation=options.speculation,
        policy=options.policy,
        exact=lm.exact and lm.row_counts() is not None,
        cache_dtype=kept,
        cache_bytes=blocks * PagedCache.block_bytes(config, options.block_size, kept),
        cache_tokens=blocks * options.block_size if config.mixer == "attention" else 0,
        block_size=options.block_size,
    )


def _embeds(model: str) -> bool:
    """Whether a checkpoint reads texts whole, and is neither a classifier nor one that writes."""
    directory, adapter = find_model(model)
    config = load_config(directory)
    head = config.head if adapter is None else read_head(adapter) or config.head
    return head == "embedding" or (
        head in (None, "masked") and not config.causal and config.encoder is None
    )


def _reader(
    model: str,
    name: str,
    options: EngineOptions,
    dtype: str,
    device: str,
    int8_activations: Int8Activations,
) -> tuple[EmbeddingEngine, ModelInfo]:
    directory, adapter = find_model(model)
    stored = load_config(directory).dtype
    if dtype == "auto" and stored != "float32" and preferred_dtype(device) == torch.float32:
        dtype = "float32"  # as hone.load has it
    if adapter is None:
        loaded = load_model(directory, dtype, device, "embedding")
    else:
        loaded = load_adapted(directory, adapter, dtype, device, "embedding")
    use_int8_activations(loaded, int8_activations)
    assert isinstance(loaded, Embedder)
    engine = EmbeddingEngine(loaded, options)
    config = loaded.config
    return engine, ModelInfo(
        name=name,
        context=engine.longest,
        longest_prompt=engine.longest,
        vocabulary=config.vocab_size,
        generates=False,
        embeds=True,
        created=_written(adapter or directory),
        dtype=str(loaded.dtype).removeprefix("torch."),
        quantization=_quantization(config),
        policy=options.policy,
    )


def _quantization(config: ModelConfig) -> str | None:
    method: str | None = (config.quantization_config or {}).get("quant_method")
    return method


def _written(directory: Path) -> int:
    try:
        return int((directory / "config.json").stat().st_mtime)
    except OSError:
        return int(time.time())
