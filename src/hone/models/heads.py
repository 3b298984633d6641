"""Models by their head. Any body takes any head that its kind of attention allows."""

import torch

from hone.core.errors import CheckpointError, RequestError
from hone.core.nearest import nearest
from hone.models.config import HEADS, Head, ModelConfig
from hone.models.language import CausalLM, MaskedLM, Seq2SeqLM
from hone.models.model import Model
from hone.models.readers import Classifier, Embedder, TokenClassifier

MODELS: dict[Head, type[Model]] = {
    model.head: model
    for model in (CausalLM, MaskedLM, Seq2SeqLM, Classifier, TokenClassifier, Embedder)
}
# What a classifier with one label is called elsewhere.
_NUMBERS = ("reward", "value", "score", "regression")


def fits(config: ModelConfig, head: Head) -> bool:
    """Whether a body of ``config`` can have ``head``."""
    if head == "causal":
        return config.causal and config.encoder is None
    return head != "seq2seq" or config.encoder is not None


def make_model(
    config: ModelConfig, head: Head | None = None, dtype: torch.dtype | None = None
) -> Model:
    """An uninitialised model of ``config`` with ``head``, or the head that it names.

    Raises:
        CheckpointError: the body cannot have that head.
        RequestError: there is no such head.
    """
    head = head or config.head
    if head not in HEADS:
        hint = nearest(str(head), HEADS)
        if head in _NUMBERS:
            hint = f'A number is scored by "classification" with labels=["{head}"].'
        raise RequestError(f"There is no head {head!r}. {hint}")
    if not fits(config, head):
        bodies = {"causal": "sees no token after the current one", "seq2seq": "reads a source"}
        raise CheckpointError(
            f"The head {head!r} needs a body that {bodies[head]}, which {config.model_type!r} is "
            "not; choose another head or another model."
        )
    return MODELS[head](config, dtype)
