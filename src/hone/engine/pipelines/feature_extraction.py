"""The hidden states of a text's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hone.core.errors import RequestError
from hone.engine.pipelines.base import Reader, arguments_for, checked_texts
from hone.engine.pipelines.inputs import Encoded


class FeatureExtraction(Reader):
    """The last hidden states of a text, ``[1][tokens][hidden size]`` as nested lists."""

    head = "embedding"

    def run(  # type: ignore[override]
        self,
        items: list[str],
        batch_size: int | None = None,
        *,
        truncation: bool | str | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
        return_tensors: bool | str = False,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            truncation: see :meth:`Reader.encode`.
            tokenize_kwargs: the same and more; see there.
            return_tensors: tensors and not lists.
        """
        arguments = arguments_for(self.encode, tokenize_kwargs, "tokenize_kwargs")
        if truncation is not None and "truncation" in arguments:
            raise RequestError("truncation is in tokenize_kwargs too; give it once.")
        if truncation is not None:
            arguments["truncation"] = truncation
        encoded = self.encode(checked_texts(items), **arguments)
        rows = [
            hidden_TE[None, : len(text.ids)]
            for text, hidden_TE in zip(encoded, self.outputs(encoded, batch_size), strict=True)
        ]
        return rows if return_tensors else [hidden.tolist() for hidden in rows]

    def compute(self, batch: Sequence[Encoded]) -> Tensor:
        """Hidden states ``[B, T, E]``."""
        hidden = self.model(**self.padded(batch), output_hidden_states=True).hidden_states
        assert hidden is not None, "they were asked for"
        return hidden[-1]
