"""Scores of a model on batches that it was not trained on, by what its head is for.

Shapes: N tokens of a batch, B texts or pairs, L labels, E hidden.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hone.data import IGNORED, Batch
from hone.models import Classifier, Embedder, Model, TokenClassifier
from hone.train import TensorBatch
from hone.train.contrastive import info_nce

# Of which scores more is better; of the others less is.
RISING = {
    "loss": False,
    "perplexity": False,
    "error": False,
    "accuracy": True,
    "F1": True,
    "retrieval": True,
    "rank correlation": True,
}
_LARGEST_EXPONENT = 700.0
_AT_ONCE = 1024  # texts that are compared with all others at a time


@torch.no_grad()
def held_out_loss(model: Model, batches: Sequence[Batch]) -> float:
    """The mean loss of a trained position, or text, over ``batches``; pairs without a score have
    that of telling a partner among those of its batch.
    """
    total, count = 0.0, 0
    for batch in _on(model, batches):
        if not batch.n_trained:
            continue
        if isinstance(model, Embedder) and batch.targets_B is None:
            first_BE, second_BE = (x.float() for x in model.embed_pairs(batch))
            total += float(info_nce(first_BE, second_BE, temperature=0.05).sum())
        else:
            total += float(model.packed_loss(batch))  # type: ignore[operator]
        count += batch.n_trained
    return total / count if count else math.nan


@torch.no_grad()
def held_out_scores(model: Model, batches: Sequence[Batch]) -> dict[str, float]:
    """The loss, and what else says how well the head does its work; see :data:`RISING`."""
    was_training = model.training
    model.eval()
    scores = {"loss": held_out_loss(model, batches)}
    if isinstance(model, Classifier):
        scores |= _classification(model, batches)
    elif isinstance(model, TokenClassifier):
        scores |= _token_classification(model, batches)
    elif isinstance(model, Embedder):
        scores |= _similarity(model, batches)
    else:
        scores["perplexity"] = math.exp(min(scores["loss"], _LARGEST_EXPONENT))
    model.train(was_training)
    return scores


def _on(model: Model, batches: Sequence[Batch]) -> Iterator[Any]:
    # What models take is a protocol of variables, and a batch is frozen.
    for batch in batches:
        yield TensorBatch.of(batch, model.device)


def _classification(model: Classifier, batches: Sequence[Batch]) -> dict[str, float]:
    logits = torch.cat([model.packed_logits(batch).float().cpu() for batch in _on(model, batches)])
    targets = torch.cat([batch.targets_B.cpu() for batch in _on(model, batches)])
    if model.config.problem == "regression":
        error = (logits.flatten() - targets.flatten()).square().mean().sqrt()
        return {"error": float(error)} | _correlation(logits.flatten(), targets.flatten())
    if model.config.problem == "multi_label":
        found, wanted = logits > 0, targets > 0.5
        return {
            "F1": _f1(found, wanted),
            "accuracy": float((found == wanted).all(-1).float().mean()),
        }
    chosen = logits.argmax(-1)
    # A class that no text has and that is never told says nothing; one that is told wrongly does.
    each = [_f1(chosen == c, targets == c) for c in torch.cat((chosen, targets)).unique()]
    return {"accuracy": float((chosen == targets).float().mean()), "F1": sum(each) / len(each)}


def _f1(found: Tensor, wanted: Tensor) -> float:
    """Twice the hits by all that were found and all that were wanted."""
    hits = float((found & wanted).sum())
    total = float(found.sum() + wanted.sum())
    return 2 * hits / total if total else 0.0


def _token_classification(model: TokenClassifier, batches: Sequence[Batch]) -> dict[str, float]:
    chosen, wanted = [], []
    for batch in _on(model, batches):
        kept = batch.labels_N != IGNORED
        chosen.append(model.packed_logits(batch)[kept].argmax(-1).cpu())
        wanted.append(batch.labels_N[kept].cpu())
    found_N, wanted_N = torch.cat(chosen), torch.cat(wanted)
    outside = [n for n, label in enumerate(model.config.labels) if label in ("O", "0")]
    hits = found_N == wanted_N
    tagged = ~torch.isin(wanted_N, torch.tensor(outside, dtype=wanted_N.dtype))
    marked = ~torch.isin(found_N, torch.tensor(outside, dtype=found_N.dtype))
    right = float((hits & tagged).sum())
    total = float(tagged.sum() + marked.sum())
    return {"accuracy": float(hits.float().mean()), "F1": 2 * right / total if total else 0.0}


def _similarity(model: Embedder, batches: Sequence[Batch]) -> dict[str, float]:
    first, second, scores = [], [], []
    for batch in _on(model, batches):
        one_BE, two_BE = model.embed_pairs(batch)
        first.append(torch.nn.functional.normalize(one_BE.float(), dim=-1).cpu())
        second.append(torch.nn.functional.normalize(two_BE.float(), dim=-1).cpu())
        if batch.targets_B is not None:
            scores.append(batch.targets_B.float().cpu())
    one, two = torch.cat(first), torch.cat(second)
    if scores:
        return _correlation((one * two).sum(-1), torch.cat(scores))
    # A part at a time: all similarities at once would be the square of the pairs.
    nearest = torch.cat([(part @ two.T).argmax(-1) for part in one.split(_AT_ONCE)])
    return {"retrieval": float((nearest == torch.arange(len(one))).float().mean())}


def _correlation(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Spearman's: that of the ranks, ties in the middle of theirs."""
    if len(found) < 2 or not bool(torch.isfinite(found).all()):
        return {}
    value = float(torch.corrcoef(torch.stack([_ranks(found), _ranks(wanted)]))[0, 1])
    return {"rank correlation": value} if math.isfinite(value) else {}


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    # Doubles, as products of the ranks of a large file have more digits than floats.
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]
