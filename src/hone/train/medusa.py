"""Training Medusa heads on a frozen model (Cai et al. 2024, section 2.2.1, "Medusa-1").

Shapes: N tokens of all sequences behind one another, K heads, R guesses of a head, E hidden.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hone.data import IGNORED, Batch
from hone.engine.speculation.medusa import MedusaHeads
from hone.kernels import PackedLayout
from hone.models import CausalLM, Seq2SeqLM
from hone.models.context import Packed
from hone.train.batches import TensorBatch

# What the loss of a head weighs beside that of the head before it.
_DECAY = 0.8
# Rows that are scored at a time.
_AT_ONCE = 512


def head_labels(labels_N: Tensor, positions_N: Tensor, count: int) -> Tensor:
    """What each head should guess at each position, int64 ``[K, N]``; -100 where nothing.

    Head k (from 1) guesses the token k places behind the one that the model itself does. All tokens
    between belong to the same answer.

    Args:
        labels_N: what the model itself should say.
        positions_N: from 0 in each sequence.
    """
    wanted, known_N = [], labels_N != IGNORED
    for ahead in range(1, count + 1):
        label_N = functional.pad(labels_N[ahead:], (0, min(ahead, len(labels_N))), value=IGNORED)
        there_N = functional.pad(positions_N[ahead:], (0, min(ahead, len(labels_N))), value=-1)
        known_N = known_N & (there_N == positions_N + ahead) & (label_N != IGNORED)
        wanted.append(label_N.masked_fill(~known_N, IGNORED))
    return torch.stack(wanted)


class MedusaTrainee(nn.Module):
    """A model that stays as it is, and heads that learn."""

    def __init__(self, body: CausalLM | Seq2SeqLM, heads: MedusaHeads) -> None:
        super().__init__()
        self.body, self.heads = body.requires_grad_(False), heads

    def train(self, mode: bool = True) -> "MedusaTrainee":
        """The body is never trained."""
        super().train(mode)
        self.body.eval()
        return self

    def packed_loss(self, batch: TensorBatch) -> Tensor:
        """The summed negative log-likelihood of what the heads should guess, weighted by head."""
        loss = torch.zeros((), device=self.body.device)
        states_KNE, labels_KN = self._states(batch)
        for head, (states_NE, labels_N) in enumerate(zip(states_KNE, labels_KN, strict=True)):
            keep = labels_N != IGNORED
            part = self.body.hidden_loss(states_NE[keep], labels_N[keep])
            loss = loss + _DECAY ** (head + 1) * part
        return loss

    @torch.no_grad()
    def hits(self, batch: TensorBatch, guesses: int) -> tuple[Tensor, Tensor]:
        """How often each guess of each head was right, int64 ``[K, R]``, and of how many, ``[K]``.

        Args:
            guesses: R, a head's likeliest.
        """
        states_KNE, labels_KN = self._states(batch)
        hits, counts = [], []
        for states_NE, labels_N in zip(states_KNE, labels_KN, strict=True):
            keep = labels_N != IGNORED
            right_R = torch.zeros(guesses, dtype=torch.int64)
            parts = zip(
                states_NE[keep].split(_AT_ONCE), labels_N[keep].split(_AT_ONCE), strict=True
            )
            for part_NE, label_N in parts:
                best_NR = self.body.logits(part_NE).topk(guesses, dim=-1).indices
                right_R += (best_NR == label_N[:, None]).sum(0).cpu()
            hits.append(right_R)
            counts.append(int(keep.sum()))
        return torch.stack(hits), torch.tensor(counts)

    def _states(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """What the output layer is to score, ``[K, N, E]``, and the labels ``[K, N]``, of the
        positions where the first head has one.
        """
        labels_KN = head_labels(batch.labels_N, batch.position_ids_N, self.heads.count)
        keep = (labels_KN[0] != IGNORED).nonzero().squeeze(-1)
        with torch.no_grad():
            hidden_NE = self._hidden(batch, keep)
            embedded_NE = self.body.embedding(batch.labels_N[keep])
        return self.heads(hidden_NE, embedded_NE), labels_KN[:, keep]

    def _hidden(self, batch: TensorBatch, keep: Tensor) -> Tensor:
        body, layout = self.body, PackedLayout(batch.cu_seqlens)
        context, source_ME = Packed(layout), None
        if batch.source_ids_M is not None:
            assert batch.source_cu_seqlens is not None
            source = Packed(PackedLayout(batch.source_cu_seqlens))
            source_ME = body.encoder(batch.source_ids_M, source.positions_N(), source)
            context = Packed(layout, source.layout)
        hidden_NE: Tensor = body.decoder(
            batch.input_ids_N, batch.position_ids_N, context, keep, source_ME=source_ME
        )
        return hidden_NE


def head_accuracies(
    trainee: MedusaTrainee, batches: Iterable[Batch], guesses: int
) -> list[list[float]]:
    """How often guess r of head k is right in ``batches``, ``[K][R]``; 0 where nothing tells."""
    trainee.eval()
    count = trainee.heads.count
    guesses = min(guesses, trainee.body.config.vocab_size)
    hits_KR = torch.zeros(count, guesses, dtype=torch.int64)
    counts_K = torch.zeros(count, dtype=torch.int64)
    for batch in batches:
        hits, counts = trainee.hits(TensorBatch.of(batch, trainee.body.device), guesses)
        hits_KR += hits
        counts_K += counts
    shares_KR: list[list[float]] = (hits_KR / counts_K.clamp(min=1)[:, None]).tolist()
    return shares_KR
