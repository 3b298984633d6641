"""Classes of whole texts, or of pairs of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import RequestError
from hone.core.nearest import nearest
from hone.engine.pipelines.base import Reader, checked_top_k
from hone.engine.pipelines.inputs import Text

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda scores_L: scores_L.softmax(dim=-1),
    "none": lambda scores_L: scores_L,
}
# Tells "not said" from None, which means all classes.
_LIKELIEST: Any = ""


class TextClassification(Reader):
    """The likeliest class of a text: ``{"label", "score"}``; with ``top_k`` a list of them."""

    head = "classification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See :class:`Pipeline`. One text is a text, or ``{"text": ..., "text_pair": ...}``.

        The result of one text is in a list, unless this call has a ``top_k``: as in transformers.
        """
        results = super().__call__(inputs, **options)
        return [results] if isinstance(inputs, str) and "top_k" not in options else results

    def run(  # type: ignore[override]
        self,
        items: list[str | Mapping[str, str]],
        batch_size: int | None = None,
        *,
        top_k: int | None = _LIKELIEST,
        function_to_apply: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            top_k: how many classes, the likeliest first; None for all.
            function_to_apply: "sigmoid", "softmax" or "none"; None for what fits the labels.
            truncation, max_length: see :meth:`Reader.encode`.
        """
        apply = _FUNCTIONS[self._function(function_to_apply)]
        if top_k is not None and top_k != _LIKELIEST:
            checked_top_k(top_k)
        texts = [_text(item, number) for number, item in enumerate(items, 1)]
        encoded = self.encode(texts, truncation=truncation, max_length=max_length)
        results: list[Any] = []
        for logits_L in self.outputs(encoded, batch_size):
            scores = apply(logits_L).tolist()
            named = zip(self.model.config.labels, scores, strict=True)
            ranked = [{"label": label, "score": score} for label, score in named]
            ranked.sort(key=lambda entry: -entry["score"])
            results.append(ranked[0] if top_k == _LIKELIEST else ranked[:top_k])
        return results

    def _function(self, name: str | None) -> str:
        if name is not None:
            if not isinstance(name, str) or name.lower() not in _FUNCTIONS:
                raise RequestError(
                    f"function_to_apply is {name!r}. {nearest(str(name), _FUNCTIONS)}"
                )
            return name.lower()
        config = self.model.config
        if config.problem == "multi_label":
            return "sigmoid"
        if len(config.labels) > 1:
            return "none" if config.problem == "regression" else "softmax"
        # One label is a number only where the file says so; else it is a yes or no.
        return "none" if config.extra.get("problem_type") == "regression" else "sigmoid"


def _text(item: Any, number: int) -> Text:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping) and item.keys() <= {"text", "text_pair"}:
        first, second = item.get("text"), item.get("text_pair")
        if isinstance(first, str) and second is None:
            return first
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise RequestError(
        f'Input {number} is {item!r}; give a text, or {{"text": ..., "text_pair": ...}} for two.'
    )
