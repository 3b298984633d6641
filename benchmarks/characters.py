"""Learning in the same time: Shakespeare by characters, a well-known CPU setting and hone in turn.

    HONE_DATA=... python benchmarks/characters.py                # both, each in a cold process
    HONE_DATA=... python benchmarks/characters.py --steps 400    # hone with so many steps
    HONE_DATA=... python benchmarks/characters.py --quick        # 40 steps of the setting, a check

The setting is nanoGPT's for a CPU: 4 layers of 4 heads, 128 wide, windows of 64 characters, 12 of
them a step, 2,000 steps of AdamW, the losses of both splits estimated every 250 steps. It is
written here with plain PyTorch modules. hone then trains a Llama of no more parameters with Muon
and AdamW; how many steps it takes is found in its own first seconds, so that its process ends
within the other one's time. Both are scored on the whole held-out tenth in windows of 64
characters, which is not counted as time. All that comes before is, for hone from the start of its
process, for the setting from the end of its imports, of which hone's own are none of its business.
"""

import argparse
import math
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from machine import measure
from torch import Tensor, nn
from torch.nn import functional

from hone.data import Causal, Corpus, Sample, encode_texts, pack, text_batches
from hone.models import CausalLM, ModelConfig
from hone.text.training import character_tokenizer
from hone.train import TensorBatch, TrainConfig, train
from hone.train.resume import Counters

LENGTH, LAYERS, HEADS, WIDTH = 64, 4, 4, 128
PEER_ROWS, ESTIMATES, ESTIMATE_EVERY = 12, 20, 250
FFN = 344  # hone's model then has a little fewer parameters than the other
PROBE_STEPS = 12
MARGIN = 0.06  # of the time left, which is not planned for


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is given.

    Attributes:
        text: the file.
        steps: the number of steps; 0 to find it from ``seconds``.
        seconds: what the whole process may take.
        begun: when the time that counts began, by the system's clock.
    """

    text: Path
    threads: int
    seed: int
    steps: int
    seconds: float
    begun: float
    tokens_per_step: int
    muon_rate: float
    rate: float

    @property
    def elapsed(self) -> float:
        """Seconds of the time that counts."""
        return time.time() - self.begun


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contender did; ``estimate`` is its own of the held-out loss."""

    parameters: int
    steps: int
    characters: int
    seconds: float
    estimating: float
    estimate: float | None
    loss: float


class Block(nn.Module):
    """A layer of the setting: LayerNorm, attention, LayerNorm, two products with GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.before_mlp = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """``[B, T, E]`` to the same."""
        qkv = self.qkv(self.before_attention(x_BTE)).unflatten(-1, (3, HEADS, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTE = x_BTE + self.out(heads.transpose(1, 2).flatten(2))
        return x_BTE + self.down(functional.gelu(self.up(self.before_mlp(x_BTE))))


class Peer(nn.Module):
    """The setting's model: learned positions, tied head, no biases."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # what ends a residual branch begins smaller (GPT-2)
                smaller = (
                    math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1
                )
                nn.init.normal_(weight, std=0.02 / smaller)

    def forward(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """The mean loss."""
        places = torch.arange(ids_BT.shape[1])
        hidden = self.norm(self.blocks(self.tokens(ids_BT) + self.positions(places)))
        logits = hidden @ self.tokens.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())


def run_peer(job: Job) -> Outcome:
    """Train and score the setting's model."""
    torch.manual_seed(job.seed)
    text = job.text.read_text(encoding="utf-8")
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[character] for character in text])
    cut = int(0.9 * len(ids))
    splits = {"train": ids[:cut], "val": ids[cut:]}
    model = Peer(len(known))
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
    )

    def draw(split: str) -> tuple[Tensor, Tensor]:
        part = splits[split]
        starts = torch.randint(len(part) - LENGTH, (PEER_ROWS,))
        rows = torch.stack([part[start : start + LENGTH + 1] for start in starts])
        return rows[:, :-1], rows[:, 1:]

    @torch.no_grad()
    def estimate() -> dict[str, float]:
        model.eval()
        found = {
            split: sum(model(*draw(split)).item() for _ in range(ESTIMATES)) / ESTIMATES
            for split in splits
        }
        model.train()
        return found

    estimating, found = 0.0, {}
    for step in range(job.steps + 1):
        if step % ESTIMATE_EVERY == 0 or step == job.steps:
            begun = time.perf_counter()
            found = estimate()
            estimating += time.perf_counter() - begun
            note(
                f"the setting, step {step:,}: train {found['train']:.3f}, held out "
                f"{found['val']:.3f}"
            )
        if step == job.steps:
            break
        rate = peer_rate(step, job.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(*draw("train"))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it is logged at every step
    seconds = job.elapsed
    return Outcome(
        sum(weight.numel() for weight in model.parameters()),
        job.steps,
        job.steps * PEER_ROWS * LENGTH,
        seconds,
        estimating,
        found["val"],
        whole_loss_of_peer(model, splits["val"]),
    )


def peer_rate(step: int, steps: int, peak: float = 1e-3, last: float = 1e-4) -> float:
    """100 steps of warmup, then a cosine to a tenth."""
    warmup = min(100, steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (steps - warmup)
    return last + (peak - last) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def whole_loss_of_peer(model: Peer, ids: Tensor) -> float:
    """The mean loss of every character but the first, each seen from the start of its window."""
    model.eval()
    total = 0.0
    full = (len(ids) - 1) // LENGTH * LENGTH
    pairs = list(zip(ids[:full].view(-1, LENGTH), ids[1 : full + 1].view(-1, LENGTH), strict=True))
    for start in range(0, len(pairs), 64):
        inputs, labels = (
            torch.stack(rows) for rows in zip(*pairs[start : start + 64], strict=True)
        )
        total += model(inputs, labels).item() * labels.numel()
    if full < len(ids) - 1:
        total += model(ids[None, full:-1], ids[None, full + 1 :]).item() * (len(ids) - 1 - full)
    return total / (len(ids) - 1)


def run_hone(job: Job) -> Outcome:
    """Train and score hone's model by its own loop."""
    text = job.text.read_text(encoding="utf-8")
    tokenizer = character_tokenizer([text])
    cut = int(0.9 * len(text))
    training, held_out = (
        Corpus.of(encode_texts([part], tokenizer)) for part in (text[:cut], text[cut:])
    )
    batches = text_batches(training, Causal(), LENGTH, job.tokens_per_step, job.seed)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )

    def run(steps: int) -> tuple[CausalLM, list[float]]:
        model = CausalLM(config, dtype=torch.float32)
        model.initialise(job.seed)
        settings = TrainConfig(
            steps=steps,
            optimizer="muon",
            muon_learning_rate=job.muon_rate,
            learning_rate=job.rate,
            warmup_steps=min(40, steps // 4),
            cooldown_fraction=0.6,
            checkpoint_every=steps,
            seed=job.seed,
        )
        ends: list[float] = []

        def follow(counters: Counters) -> None:
            ends.append(time.perf_counter())
            if len(ends) % max(10, steps // 80 * 10) == 0:
                note(f"hone, step {len(ends):,}: train {counters.loss or 0.0:.3f}")

        with tempfile.TemporaryDirectory() as folder:
            train(model, batches, settings, folder, on_step=follow)
        return model, ends

    steps = job.steps
    if not steps:
        _, ends = run(PROBE_STEPS)
        each = (ends[-1] - ends[2]) / (PROBE_STEPS - 3)
        left = (job.seconds - job.elapsed) * (1 - MARGIN)
        steps = max(1, int(left / each))
        note(
            f"hone: {job.tokens_per_step / each:,.0f} characters/s in {PROBE_STEPS} steps, "
            f"{left:.0f} of {job.seconds:.0f} s to be used: {steps} steps"
        )
    model, _ = run(steps)
    seconds = job.elapsed
    return Outcome(
        config.parameter_count,
        steps,
        sum(batches.at(step).n_trained for step in range(steps)),
        seconds,
        0.0,
        None,
        whole_loss_of_hone(model, np.asarray(held_out.ids)),
    )


@torch.no_grad()
def whole_loss_of_hone(model: CausalLM, ids: np.ndarray) -> float:
    """See :func:`whole_loss_of_peer`."""
    model.eval()
    starts = range(0, len(ids) - 1, LENGTH)
    pieces = [ids[start : start + LENGTH + 1].astype(np.int64) for start in starts]
    samples = [Sample(piece[:-1], piece[1:]) for piece in pieces]
    total = trained = 0.0
    for start in range(0, len(samples), 64):
        batch = TensorBatch.of(pack(samples[start : start + 64]))
        total += model.packed_loss(batch).item()
        trained += batch.n_trained
    return total / trained


def note(line: str) -> None:
    """Tell how far a contender is."""
    print("  " + line, file=sys.stderr, flush=True)


def contender(connection: Connection, name: str, job: Job) -> None:
    """The process of one contender."""
    torch.set_num_threads(job.threads)
    if name == "hone":
        connection.send(run_hone(job))
    else:
        connection.send(run_peer(replace(job, begun=time.time())))


def start(name: str, options: argparse.Namespace, steps: int, seconds: float) -> Outcome:
    """Run a contender in a process of its own, to its end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    job = Job(
        text=Path(options.data) / "tinyshakespeare" / "input.txt",
        threads=options.threads,
        seed=options.seed,
        steps=steps,
        seconds=seconds,
        begun=time.time(),
        tokens_per_step=options.tokens_per_step,
        muon_rate=options.muon_rate,
        rate=options.rate,
    )
    process = context.Process(target=contender, args=(there, name, job), daemon=True)
    process.start()
    there.close()
    try:
        outcome: Outcome = here.recv()
    except EOFError:
        raise SystemExit(f"{name} did not end; its error is above.") from None
    process.join()
    return outcome


def print_table(rows: dict[str, Outcome]) -> None:
    """A Markdown table."""
    print(
        "| | parameters | steps | characters | wall time | of it estimating "
        "| own estimate | held-out loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, o in rows.items():
        estimate = "-" if o.estimate is None else f"{o.estimate:.3f}"
        print(
            f"| {name} | {o.parameters:,} | {o.steps:,} | {o.characters:,} | {o.seconds:.1f} s "
            f"| {o.estimating:.1f} s | {estimate} | {o.loss:.3f} |"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 steps of the setting: a check")
    parser.add_argument("--steps", type=int, default=0, help="of hone, instead of finding them")
    parser.add_argument("--peer-steps", type=int, default=2000, help="0 leaves the setting out")
    parser.add_argument("--tokens-per-step", type=int, default=2048, help="of hone")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="of hone")
    parser.add_argument("--rate", type=float, default=3e-3, help="of hone's AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default=os.environ.get("HONE_DATA", ""), help="see HONE_DATA")
    options = parser.parse_args()
    if not (Path(options.data) / "tinyshakespeare" / "input.txt").is_file():
        parser.error("set HONE_DATA (or --data) to a folder that has tinyshakespeare/input.txt")
    if not options.peer_steps and not options.steps:
        parser.error("without the setting's time give hone's --steps")
    torch.set_num_threads(options.threads)
    if not options.quick:
        print(measure().describe() + "\n", flush=True)
    rows, seconds = {}, 0.0
    if options.peer_steps:
        rows["the setting"] = start(
            "peer", options, 40 if options.quick else options.peer_steps, seconds
        )
        seconds = rows["the setting"].seconds
    rows["hone"] = start("hone", options, 8 if options.quick else options.steps, seconds)
    print()
    print_table(rows)


if __name__ == "__main__":
    main()
