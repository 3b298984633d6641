"""One vector for a text.

transformers has no such task. The name says what comes out, in the pattern of the others
("text-classification"); "sentence-similarity", the hub's tag for these models, would promise a
comparison, and "feature-extraction" gives a vector for each token.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hone.core.errors import RequestError
from hone.core.nearest import nearest
from hone.engine.pipelines.base import Reader, checked_texts

_POOLINGS = ("cls", "mean", "last")


class SentenceEmbedding(Reader):
    """The vector of a text, a list of numbers; pooled as the files of the checkpoint say."""

    head = "embedding"

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        dtype: str,
        device: str | torch.device,
        *,
        task: str,
        options: Mapping[str, Any],
    ) -> None:
        """Load the model.

        Args:
            options: beside those of :meth:`run`, for all calls alike: ``pooling``, "mean", "cls" or
                "last", and ``normalize``, whether vectors have the length 1.
        """
        changes: dict[str, Any] = {}
        rest = dict(options)
        pooling, unit = rest.pop("pooling", None), rest.pop("normalize", None)
        if pooling is not None:
            if pooling not in _POOLINGS:
                raise RequestError(f"pooling is {pooling!r}. {nearest(str(pooling), _POOLINGS)}")
            changes["embedding_pooling"] = pooling
        if unit is not None:
            changes["unit_length"] = bool(unit)
        super().__init__(path, tokenizer, dtype, device, task=task, options=rest)
        self.model.config = replace(self.model.config, **changes)

    def run(  # type: ignore[override]
        self,
        items: list[str],
        batch_size: int | None = None,
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: bool | str = False,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            truncation, max_length: see :meth:`Reader.encode`.
            return_tensors: tensors and not lists.
        """
        texts = checked_texts(items)
        encoded = self.encode(texts, truncation=truncation, max_length=max_length)
        rows = self.outputs(encoded, batch_size)
        return list(rows) if return_tensors else [row_E.tolist() for row_E in rows]
