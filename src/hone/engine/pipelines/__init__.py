"""Models by task, with the names and the output fields of transformers' pipelines.

A file for each kind of task; ``base`` has what they share, ``inputs`` texts as tokens.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hone.adapters import is_adapter, read_head
from hone.core.errors import CheckpointError, RequestError
from hone.core.hub import find_checkpoint
from hone.core.nearest import nearest
from hone.engine.adapted import find_model
from hone.engine.pipelines.base import Pipeline
from hone.engine.pipelines.feature_extraction import FeatureExtraction
from hone.engine.pipelines.fill_mask import FillMask
from hone.engine.pipelines.sentence_embedding import SentenceEmbedding
from hone.engine.pipelines.text2text import Summarization, Text2Text, Translation
from hone.engine.pipelines.text_classification import TextClassification
from hone.engine.pipelines.text_generation import TextGeneration
from hone.engine.pipelines.token_classification import TokenClassification
from hone.models import Head, load_config

__all__ = ["ALIASES", "TASKS", "Pipeline", "pipeline"]

TASKS: dict[str, Callable[..., Pipeline]] = {
    "text-generation": TextGeneration,
    "fill-mask": FillMask,
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "feature-extraction": FeatureExtraction,
    "sentence-embedding": SentenceEmbedding,
    "summarization": Summarization,
    "translation": Translation,
    "text2text-generation": Text2Text,
}
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "embeddings": "sentence-embedding",
}
_BY_HEAD: dict[Head, str] = {
    "causal": "text-generation",
    "masked": "fill-mask",
    "seq2seq": "text2text-generation",
    "classification": "text-classification",
    "token-classification": "token-classification",
    "embedding": "feature-extraction",
}
_LANGUAGES = re.compile(r"translation_\w+_to_\w+")


def pipeline(
    task: str | None = None,
    model: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | int | torch.device = "cpu",
    **options: Any,
) -> Pipeline:
    """A model ready for a task: call it with a text, or a list of them.

    Args:
        task: one of :data:`TASKS` or :data:`ALIASES`, or ``translation_xx_to_yy``; None for what
            the checkpoint's head is for.
        model: a checkpoint directory, an adapter, a run of hone, or a name on the hub.
        tokenizer: where the tokenizer is, if elsewhere.
        dtype: "float32", "bfloat16", "float16", "auto" (see :func:`hone.load`), or torch's own;
            ``torch_dtype`` is its older name.
        device: where to compute; a number means that GPU, -1 the CPU.
        options: of the task, for every call that does not say otherwise.

    Raises:
        RequestError: an unknown task or option; the nearest known one is named.
        CheckpointError: a missing or broken checkpoint, or one that cannot do the task.
    """
    if model is None:
        raise RequestError('There is no model; pass a directory or a name: model="...".')
    directory, adapter = find_model(model)
    path = adapter or directory
    name = _task_of(path) if task is None else ALIASES.get(task, task)
    kind = "translation" if _LANGUAGES.fullmatch(name) else name
    if kind not in TASKS:
        raise RequestError(f'There is no task "{task}". {nearest(kind, [*TASKS, *ALIASES])}')
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    dtype = str(options.pop("torch_dtype", dtype)).removeprefix("torch.")
    folder = path if tokenizer is None else find_tokenizer(tokenizer)
    if tokenizer is None and not (path / "tokenizer.json").is_file():
        folder = directory  # an adapter may leave the tokenizer to its base
    return TASKS[kind](path, folder, dtype, device, task=name, options=options)


def find_tokenizer(path: str | Path) -> Path:
    """The directory of a tokenizer, which need not hold a model."""
    return Path(path) if (Path(path) / "tokenizer.json").is_file() else find_checkpoint(path)


def _task_of(path: Path) -> str:
    if (path / "modules.json").is_file():
        return "sentence-embedding"
    head = read_head(path) if is_adapter(path) else load_config(path).head
    if head is None:
        raise CheckpointError(f"{path} does not say what it is for; name a task.")
    return _BY_HEAD[head]
