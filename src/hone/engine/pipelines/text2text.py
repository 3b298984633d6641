"""Texts made of other texts by a model with an encoder: summaries, translations, answers.

transformers 5 has these tasks no more; names and fields are those of transformers 4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from hone.core.errors import CheckpointError, RequestError
from hone.core.nearest import nearest
from hone.engine.pipelines.base import checked_texts, cut_length, cuts
from hone.engine.pipelines.decoding import Decoding, known_only
from hone.engine.pipelines.inputs import cut, encode
from hone.engine.pipelines.text_generation import Writer

_DEFAULTS = {"max_new_tokens": 256}


class Text2Text(Writer):
    """What the model answers to a text: ``[{"generated_text": ...}]``, one for each asked for.

    Attributes:
        prefix: what stands before every text, by the checkpoint's ``task_specific_params``.
    """

    returns: ClassVar[str] = "generated"
    prefix = ""

    def special_settings(self, stored: dict[str, Any]) -> dict[str, Any]:
        """See :class:`Writer`; without an encoder there are none to read."""
        if self.lm.config.encoder is None:
            raise CheckpointError(
                f'{self.path} is a model without an encoder, which "{self.task}" needs; use '
                '"text-generation", or another model.'
            )
        extra = self.lm.config.extra
        special = extra.get("task_specific_params") or {}
        mine = special.get(self.task, {}) if isinstance(special, dict) else {}
        if not isinstance(mine, dict):
            raise CheckpointError(
                f"{self.path / 'config.json'}: task_specific_params is no object of objects."
            )
        self.prefix = str(mine.get("prefix") or extra.get("prefix") or "")
        return {**stored, **known_only(mine)}

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See :class:`Pipeline`; of a list of texts with one result each, a list of results."""
        results = super().__call__(inputs, **options)
        if isinstance(inputs, list | tuple) and all(len(several) == 1 for several in results):
            return [several[0] for several in results]
        return results

    def run(
        self,
        items: list[str],
        batch_size: int | None = None,
        *,
        return_tensors: bool | str | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        truncation: bool | str | None = None,
        **generation: Any,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            return_tensors: ``{"..._token_ids": ...}`` instead of text.
            return_text: True is the usual text; for the sake of old code.
            clean_up_tokenization_spaces: see :meth:`Tokenizer.decode`.
            truncation: True cuts a text that is too long.
            generation: as in :class:`TextGeneration`.
        """
        decoding = Decoding(generation, self.stored, _DEFAULTS)
        texts = [self.prefix + text for text in checked_texts(items)]
        encoded = encode(self.tokenizer, texts)
        length = cut_length(self.lm.config, self.tokenizer)
        if cuts(truncation, None) and length is not None:
            encoded = [cut(text, length) for text in encoded]
        # What an answer begins with counts in max_length; the text does not.
        results = self.generate([text.ids for text in encoded], decoding, length=1)
        found = []
        for several in results:
            records: list[dict[str, Any]] = []
            for result in several:
                ids = result.token_ids
                if return_tensors and not return_text:
                    records.append({f"{self.returns}_token_ids": ids})
                    continue
                text = self.tokenizer.decode(
                    ids, clean_up_tokenization_spaces=clean_up_tokenization_spaces
                )
                records.append({f"{self.returns}_text": text})
            found.append(records)
        return found


class Summarization(Text2Text):
    """A summary of a text: ``[{"summary_text": ...}]``."""

    returns = "summary"


class Translation(Text2Text):
    """A translation of a text: ``[{"translation_text": ...}]``."""

    returns = "translation"

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
            options: beside those of :meth:`run`: ``src_lang`` and ``tgt_lang``, if ``task`` does
                not name the languages.
        """
        rest = dict(options)
        source, target = rest.pop("src_lang", None), rest.pop("tgt_lang", None)
        if task == "translation" and source and target:
            task = f"translation_{source}_to_{target}"
        super().__init__(path, tokenizer, dtype, device, task=task, options=rest)

    def special_settings(self, stored: dict[str, Any]) -> dict[str, Any]:
        """See :class:`Writer`.

        Raises:
            RequestError: the checkpoint knows several pairs of languages, and not this one.
        """
        special = self.lm.config.extra.get("task_specific_params") or {}
        pairs = [name for name in special if name.startswith("translation_")]
        if pairs and self.task not in special:
            raise RequestError(
                f'{self.path} knows no task "{self.task}". {nearest(self.task, pairs)}'
            )
        return super().special_settings(stored)
