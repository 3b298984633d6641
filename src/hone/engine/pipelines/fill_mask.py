"""The tokens that fit in the place of a mask.

Shapes: N tokens of a batch, M masks in it, V vocabulary.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import CheckpointError, RequestError
from hone.engine.pipelines.base import Reader, arguments_for, checked_texts, checked_top_k
from hone.engine.pipelines.inputs import Encoded
from hone.models import MaskedLM, Packed


class FillMask(Reader):
    """The likeliest fillings: ``{"score", "token", "token_str", "sequence"}``.

    A text with several masks gives such a list for each, every one as if it were alone.
    """

    head = "masked"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See :class:`Pipeline`; a list of one text gives that text's own result, as theirs."""
        results = super().__call__(inputs, **options)
        return results[0] if isinstance(inputs, list) and len(inputs) == 1 else results

    def run(  # type: ignore[override]
        self,
        items: list[str],
        batch_size: int | None = None,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            top_k: how many fillings.
            targets: the words to choose among; None for the whole vocabulary.
            tokenizer_kwargs: ``truncation`` and so on; see :meth:`Reader.encode`.
        """
        checked_top_k(top_k)
        if self.tokenizer.mask_id is None:
            raise CheckpointError(f"The tokenizer of {self.path} has no mask token.")
        arguments = arguments_for(self.encode, tokenizer_kwargs, "tokenizer_kwargs")
        encoded = self.encode(checked_texts(items), **arguments)
        for number, text in enumerate(encoded, 1):
            if self.tokenizer.mask_id not in text.ids:
                raise RequestError(
                    f"Text {number} has no {self.tokenizer.mask_token}, the mask to fill."
                )
        chosen = None if targets is None else self._target_ids(targets)
        results: list[Any] = [None] * len(encoded)
        for places, batch in self.batches(encoded, batch_size):
            scores_MV = self._scores(batch)
            masks = [text.ids.count(self.tokenizer.mask_id) for text in batch]
            for place, text, scores in zip(places, batch, scores_MV.split(masks), strict=True):
                results[place] = self._fillings(text.ids, scores, top_k, chosen)
        return results

    @torch.inference_mode()
    def _scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Probabilities ``[M, V]`` at the masks alone: elsewhere nobody needs them."""
        mask = self.tokenizer.mask_id
        assert isinstance(self.model, MaskedLM)
        assert mask is not None
        if self.model.config.encoder is not None:  # the decoder reads the text once more
            given = self.padded(batch)
            is_mask_BT = torch.eq(given["input_ids"], mask) & given["attention_mask"]
            return self.model(**given).logits[is_mask_BT].float().softmax(dim=-1).cpu()
        device = self.model.device
        ids_N: Tensor = torch.tensor([i for text in batch for i in text.ids], device=device)
        kinds_N = torch.tensor([k for text in batch for k in text.kinds], device=device)
        masks_M = torch.eq(ids_N, mask).nonzero()[:, 0]
        context = Packed.of([len(text.ids) for text in batch], device=device)
        hidden_ME = self.model.decoder(
            ids_N,
            context.positions_N(),
            context,
            keep=masks_M,
            token_types_N=kinds_N if self.has_kinds else None,
        )
        return self.model.logits(hidden_ME).float().softmax(dim=-1).cpu()

    def _fillings(
        self, ids: list[int], scores_MV: Tensor, top_k: int, targets: list[int] | None
    ) -> list[Any]:
        if targets is not None:
            scores_MV = scores_MV[:, targets]
        best_MK, order_MK = scores_MV.topk(min(top_k, scores_MV.shape[1]))
        places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        rows = []
        for place, best, order in zip(places, best_MK.tolist(), order_MK.tolist(), strict=True):
            tokens = order if targets is None else [targets[number] for number in order]
            row = []
            for score, token in zip(best, tokens, strict=True):
                filled = [*ids[:place], token, *ids[place + 1 :]]
                # Other masks are special tokens, and should be seen.
                text = self.tokenizer.decode(filled, skip_special_tokens=len(places) == 1)
                word = self.tokenizer.decode([token], skip_special_tokens=False)
                row.append({"score": score, "token": token, "token_str": word, "sequence": text})
            rows.append(row)
        return rows[0] if len(rows) == 1 else rows

    def _target_ids(self, targets: str | Sequence[str]) -> list[int]:
        found: list[int] = []
        for target in [targets] if isinstance(targets, str) else targets:
            token = self.tokenizer.token_to_id(target)
            if token is None:
                ids = self.tokenizer.encode(target)
                first = f"its first token, {self.tokenizer.id_to_token(ids[0])!r}," if ids else ""
                warnings.warn(
                    f"The vocabulary has no {target!r}; {first or 'nothing'} takes its place.",
                    stacklevel=4,
                )
                if not ids:
                    continue
                token = ids[0]
            found.append(token)
        if not found:
            raise RequestError("None of the targets is in the vocabulary; give at least one.")
        return list(dict.fromkeys(found))
