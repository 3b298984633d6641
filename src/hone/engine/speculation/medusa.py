"""Medusa: heads on the model's own hidden state guess the tokens after the next one, all at once.

After Cai et al. 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding
Heads", with two changes. A head scores with the model's own output layer, which a pass reads once
for all heads; layers of their own would be K more of the model's largest matrix. And a head reads
the token that was chosen last too, which is known by then (Ankner et al. 2024, "Hydra", section 3).

Shapes: N rows, R sequences, E hidden, K heads, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from hone.core.errors import CheckpointError, DataError
from hone.core.files import atomic_dir, read_json, write_json
from hone.engine.sequence import Draft, Sequence
from hone.engine.speculation.proposer import NOTHING
from hone.engine.speculation.tree import Tree
from hone.kernels import project
from hone.models import CausalLM, Seq2SeqLM
from hone.models.checkpoint import save_weights

WEIGHTS, SETTINGS = "medusa.safetensors", "medusa.json"
# Folders of a run that hold heads.
FOLDER = "medusa"


class MedusaHeads(nn.Module):
    """K residual blocks: x + down(SiLU(up([x, the last token's embedding])))."""

    def __init__(self, count: int, hidden_size: int) -> None:
        """Heads that leave hidden states as they are, until they are trained or filled."""
        super().__init__()
        self.count, self.hidden_size = count, hidden_size
        # One product for all heads, which read the same.
        self.up = nn.Linear(2 * hidden_size, count * hidden_size)
        self.down = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(count)
        )

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """First values; the heads score as the model itself does."""
        generator = torch.Generator().manual_seed(seed)
        self.up.weight.normal_(0.0, (2 * self.hidden_size) ** -0.5, generator=generator)
        self.up.bias.zero_()
        for weight in self.down.parameters():
            weight.zero_()

    def forward(self, hidden_NE: Tensor, embedded_NE: Tensor) -> Tensor:
        """What each head has the output layer score, ``[K, N, E]``.

        Args:
            hidden_NE: the hidden states from which the last tokens were chosen.
            embedded_NE: the embeddings of those.
        """
        # Of any scale in the model; hidden states are normalised.
        embedded_NE = functional.rms_norm(embedded_NE, (self.hidden_size,))
        inner = functional.silu(project(torch.cat((hidden_NE, embedded_NE), -1), (self.up,)))
        return torch.stack(
            [
                hidden_NE + project(part_NE, (down,))
                for part_NE, down in zip(inner.chunk(self.count, -1), self.down, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class MedusaFile:
    """What ``medusa.json`` tells of the heads.

    Attributes:
        heads: K.
        hidden_size, vocabulary: of the model that they are for.
        base: its name.
        accuracies_KR: how often guess r of head k was right on texts that were not trained on.
        tree: the tree that was chosen from those.
    """

    heads: int
    hidden_size: int
    vocabulary: int
    base: str
    accuracies_KR: list[list[float]]  # noqa: N815
    tree: Tree


def save_heads(directory: str | Path, heads: MedusaHeads, about: MedusaFile) -> None:
    """Write both files into a directory of their own, whole or not at all.

    Raises:
        CapacityError: the disk is full.
    """
    values = {
        "heads": about.heads,
        "hidden_size": about.hidden_size,
        "vocabulary": about.vocabulary,
        "base": about.base,
        "accuracies": about.accuracies_KR,
        "tree": {"paths": about.tree.paths, "worth": about.tree.worth},
    }
    weights = {name: x.detach().cpu().contiguous() for name, x in heads.state_dict().items()}
    with atomic_dir(directory) as temporary:
        write_json(temporary / SETTINGS, values)
        save_weights(weights, temporary / WEIGHTS)


def load_heads(path: str | Path, model: CausalLM | Seq2SeqLM) -> tuple[MedusaHeads, MedusaFile]:
    """The heads in a directory, or in the folder of a run that made them.

    Raises:
        CheckpointError: a file is missing or damaged, or they are another model's.
    """
    directory = Path(path)
    if not (directory / SETTINGS).is_file() and (directory / FOLDER / SETTINGS).is_file():
        directory = directory / FOLDER
    about = _read_settings(directory / SETTINGS)
    config = model.config
    if (about.hidden_size, about.vocabulary) != (config.hidden_size, config.vocab_size):
        raise CheckpointError(
            f"The heads in {directory} are for {about.base}, with {about.hidden_size} hidden "
            f"numbers and {about.vocabulary:,} tokens; this model has {config.hidden_size} and "
            f"{config.vocab_size:,}. Train heads for it with `hone medusa`."
        )
    heads = MedusaHeads(about.heads, about.hidden_size)
    file = directory / WEIGHTS
    try:
        heads.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{file} is missing, truncated or not what {SETTINGS} tells; copy it again, or train "
            "the heads again."
        ) from error
    return heads.to(model.device, model.dtype).eval().requires_grad_(False), about


def _read_settings(file: Path) -> MedusaFile:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no {SETTINGS}, so there are no Medusa heads. `hone medusa` trains "
            "some."
        )
    try:
        values = read_json(file)
        paths = tuple(tuple(int(guess) for guess in path) for path in values["tree"]["paths"])
        about = MedusaFile(
            int(values["heads"]),
            int(values["hidden_size"]),
            int(values["vocabulary"]),
            str(values["base"]),
            [[float(x) for x in row] for row in values["accuracies"]],
            Tree(paths, tuple(float(x) for x in values["tree"]["worth"])),
        )
        _check_tree(about)
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} does not tell heads, sizes and a tree; train the heads again."
        ) from error
    return about


def _check_tree(about: MedusaFile) -> None:
    known: set[tuple[int, ...]] = {()}
    for path in about.tree.paths:
        if path[:-1] not in known or not path or len(path) > about.heads or min(path) < 0:
            raise ValueError("a node without its parent")
        known.add(path)
    if not about.tree.paths or len(about.tree.paths) != len(about.tree.worth):
        raise ValueError("no tree")


class MedusaProposer:
    """Guesses a tree of tokens from the hidden state that a sequence's last token came from."""

    stepwise = False

    def __init__(self, model: CausalLM | Seq2SeqLM, heads: MedusaHeads, tree: Tree) -> None:
        """``heads`` for ``model``."""
        self._model, self._heads, self._tree = model, heads, tree
        self._parents, self._guesses = tree.parents, tree.guesses
        self._hidden: dict[int, Tensor] = {}

    @torch.inference_mode()
    def propose(self, sequences: Seq[Sequence], most: Seq[int]) -> list[Draft]:
        """See :class:`Proposer`; the first nodes of the tree."""
        drafts = [NOTHING] * len(sequences)
        ready = [
            place
            for place, (sequence, limit) in enumerate(zip(sequences, most, strict=True))
            if limit > 0 and sequence.key in self._hidden
        ]
        if not ready:
            return drafts
        model = self._model
        hidden_RE = torch.stack([self._hidden[sequences[place].key] for place in ready])
        last_R = torch.tensor([sequences[p].tokens[-1] for p in ready], device=model.device)
        states_KRE = self._heads(hidden_RE, model.embedding(last_R))
        logits_NV = model.logits(states_KRE.flatten(0, 1))
        best = logits_NV.topk(min(self._guesses, logits_NV.shape[-1]), dim=-1).indices
        best_KRG = best.unflatten(0, (self._heads.count, len(ready))).tolist()
        for number, place in enumerate(ready):
            paths = self._tree.paths[: most[place]]
            tokens = [best_KRG[len(path) - 1][number][path[-1]] for path in paths]
            parents: list[int] | None = self._parents[: len(paths)]
            if parents == list(range(-1, len(paths) - 1)):
                parents = None
            drafts[place] = Draft(tokens, parents)
        return drafts

    def observe(self, sequences: Seq[Sequence], hidden_RE: Tensor) -> None:
        """See :class:`Proposer`."""
        for sequence, hidden_E in zip(sequences, hidden_RE, strict=True):
            self._hidden[sequence.key] = hidden_E

    def forget(self, sequence: Sequence) -> None:
        """See :class:`Proposer`."""
        self._hidden.pop(sequence.key, None)
