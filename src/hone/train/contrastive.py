"""Sentence embeddings: the two texts of a pair close together, those of other pairs apart.

The negatives of a pair are all other pairs of the whole step. That is more than a micro-batch or a
process holds, so gradients go through a cache of embeddings (Gao et al. 2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup"): the parts are embedded without a
graph, the loss of all embeddings gives each its gradient, and each part is then embedded once more,
now with a graph, and handed the gradients of its embeddings. The result is that of one huge batch.

Shapes: B pairs of a part, P pairs of this process, A pairs of the step, E hidden.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hone.core.errors import ConfigError
from hone.models import Embedder
from hone.parallel import Processes
from hone.train.batches import TensorBatch

Pairs = tuple[Tensor, Tensor]


class Contrastive:
    """InfoNCE with in-batch negatives (van den Oord et al. 2018; Henderson et al. 2017)."""

    def __init__(self, temperature: float = 0.05, both_directions: bool = False) -> None:
        """Score pairs by their cosine similarity, divided by ``temperature``.

        Args:
            both_directions: the second text looks for the first among all first ones too, and the
                loss is the mean of the two (Radford et al. 2021, CLIP).

        Raises:
            ConfigError: ``temperature`` is no positive number.
        """
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature must be a number above 0, not {temperature!r}.")
        self._temperature, self._both = temperature, both_directions

    @property
    def identity(self) -> Mapping[str, Any]:
        """See :class:`hone.train.Objective`."""
        return {
            "objective": "contrastive",
            "temperature": self._temperature,
            "both_directions": self._both,
        }

    def backward(
        self,
        model: nn.Module,
        parts: Sequence[TensorBatch],
        divisor: float,
        after_part: Callable[[], None],
        processes: Processes,
    ) -> float:
        """See :class:`hone.train.Objective`; a pair counts as one that is trained."""
        embedder = cast(Embedder, model)
        embed = cast(Callable[[TensorBatch], Pairs], embedder.embed_pairs)
        # A single part is small enough for its graph to be kept.
        keep_graph = len(parts) == 1
        streams, embedded = [], []
        for part in parts:
            streams.append(_random_state(embedder.device))
            with torch.set_grad_enabled(keep_graph):
                embedded.append(embed(part))
        own = [pair[0].shape[0] for pair in embedded]
        loss, first_PE, second_PE = self._loss(embedder, embedded, divisor, processes)
        for number, gradients in enumerate(
            zip(first_PE.split(own), second_PE.split(own), strict=True) if own else ()
        ):
            pair = embedded[number]
            if not keep_graph:
                with _stream(streams[number], embedder.device):
                    pair = embed(parts[number])
            torch.autograd.backward(
                pair, [g.to(x.dtype) for g, x in zip(gradients, pair, strict=True)]
            )
            after_part()
        return loss

    def _loss(
        self,
        embedder: Embedder,
        embedded: Sequence[Pairs],
        divisor: float,
        processes: Processes,
    ) -> tuple[float, Tensor, Tensor]:
        """The summed loss of this process's pairs, and the gradients ``[P, E]`` of all the step's
        loss for its embeddings.
        """
        nothing = torch.empty(0, embedder.config.hidden_size, device=embedder.device)
        leaves, everybody = [], []
        rank = processes.rank
        for texts in zip(*embedded, strict=True) if embedded else ((nothing,), (nothing,)):
            own_PE = torch.cat([text.detach().float() for text in texts]).requires_grad_()
            gathered = processes.gather(own_PE.detach())
            start = sum(len(x) for x in gathered[:rank])
            everybody.append(torch.cat([*gathered[:rank], own_PE, *gathered[rank + 1 :]]))
            leaves.append(own_PE)
        losses_A = info_nce(everybody[0], everybody[1], self._temperature)
        if self._both:
            losses_A = (losses_A + info_nce(everybody[1], everybody[0], self._temperature)) / 2
        first_PE, second_PE = torch.autograd.grad(losses_A.sum() / divisor, leaves)
        return losses_A[start : start + len(leaves[0])].sum().item(), first_PE, second_PE


def info_nce(first_AE: Tensor, second_AE: Tensor, temperature: float) -> Tensor:
    """For each first text the negative log-likelihood ``[A]`` of its own second text among all."""
    first_AE = nn.functional.normalize(first_AE, dim=-1)
    scores_AA = first_AE @ nn.functional.normalize(second_AE, dim=-1).T / temperature
    own_A = torch.arange(len(scores_AA), device=scores_AA.device)
    return nn.functional.cross_entropy(scores_AA, own_A, reduction="none")


@contextmanager
def _stream(state: tuple[Tensor, ...], device: torch.device) -> Iterator[None]:
    """Random numbers as at ``state``: the second pass has the same dropout as the first."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state[0])
        if devices:
            torch.cuda.set_rng_state(state[1], device)
        yield


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    own = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *own
