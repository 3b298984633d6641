"""Training speed: hone and transformers in turn, on the same weights and tokens, in one run.

    python benchmarks/training.py            # the 17M shape of docs/benchmarks.md, batch 8 x 512
    python benchmarks/training.py --quick    # fewer rows and steps, no torch.compile
    python benchmarks/training.py --sizes    # hone alone: sizes for short sequences, fp32 and bf16

Every contender is a process of its own, as a user would start it, and they take steps in turn, so
that another load on the machine hits all alike. Prints tokens per second (the median step), the
ratio to the best peer, and the share of the machine's own matrix rate in float32 or bfloat16,
whichever is faster, measured in the same run.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from machine import Machine, measure
from turns import Turns

from hone.kernels import keep_freed_memory, preferred_dtype
from hone.models import CausalLM, ModelConfig, load_model, save_checkpoint
from hone.train import TensorBatch, TrainConfig
from hone.train.optimizers import Optimizer

LENGTH = 512
IGNORED = -100
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is given: a checkpoint and the lengths of the sequences of its batch."""

    folder: Path
    lengths: tuple[int, ...]
    labelled: float  # the share of each sequence's end that has labels
    threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contender did."""

    name: str
    start_seconds: float
    first_loss: float
    step_seconds: float
    rate: float  # tokens per second
    share: float  # of the machine's matrix rate


def batch_of(job: Job, vocab_size: int) -> TensorBatch:
    """Random tokens in sequences of the given lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (sum(job.lengths),), generator=generator)
    labels = torch.full_like(ids, IGNORED)
    start = 0
    for length in job.lengths:
        first = start + length - 1 - round(job.labelled * (length - 1))
        labels[first : start + length - 1] = ids[first + 1 : start + length]
        start += length
    return TensorBatch(
        input_ids_N=ids,
        position_ids_N=torch.cat([torch.arange(length) for length in job.lengths]),
        cu_seqlens=torch.tensor([0, *job.lengths]).cumsum(0).int(),
        max_length=max(job.lengths),
        labels_N=labels,
        n_trained=int((labels != IGNORED).sum()),
    )


def hone_steps(job: Job, precision: str) -> Step:
    """The step of hone's training loop."""
    keep_freed_memory()
    model = load_model(job.folder, "float32").train()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    optimizer = Optimizer(model, TrainConfig(steps=1000, optimizer="adamw", ema=0.0), dtype)
    model.adjoin_weights()
    batch = batch_of(job, model.config.vocab_size)

    def step() -> float:
        optimizer.clear_gradients()
        loss = model.packed_loss(batch) / batch.n_trained
        loss.backward()
        optimizer.collect_gradients()
        optimizer.clip_gradients()
        optimizer.step(1e-3, 0)
        return loss.item()

    return step


def transformers_steps(job: Job, precision: str, compiled: bool) -> Step:
    """A plain loop around transformers' model: forward with labels, backward, clip, fused AdamW."""
    from transformers import LlamaForCausalLM as TheirModel

    weights = torch.bfloat16 if precision == "bf16 weights" else torch.float32
    model = TheirModel.from_pretrained(job.folder, dtype=weights).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = batch_of(job, model.config.vocab_size).input_ids_N.view(len(job.lengths), -1)

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16 autocast"):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def contender(connection: Connection, name: str, job: Job) -> None:
    """The process of one contender: a step for every message that it gets."""
    torch.set_num_threads(job.threads)
    who, precision, *rest = name.split(", ")
    start = time.perf_counter()
    if who == "hone":
        step = hone_steps(job, precision)
    else:
        step = transformers_steps(job, precision, rest == ["compiled"])
    first_loss = step()
    connection.send((time.perf_counter() - start, first_loss))
    while connection.recv():
        begun = time.perf_counter()
        step()
        connection.send(time.perf_counter() - begun)


def race(names: list[str], job: Job, repeats: int, flops: float, machine: Machine) -> list[Outcome]:
    """Start every contender, then let them step in turn."""
    turns = Turns(contender, names, job)
    seconds = turns.step(repeats)
    turns.end()
    tokens = sum(job.lengths)
    outcomes = []
    for name, (start, loss), taken in zip(names, turns.started, seconds, strict=True):
        median = statistics.median(taken)
        share = flops / median / (machine.best_gflops * 1e9)
        outcomes.append(Outcome(name, start, loss, median, tokens / median, share))
    return outcomes


def flops_of(config: ModelConfig, job: Job) -> float:
    """The arithmetic that one step needs: for each weight and token 2 forward and 4 backward, and
    the causal half of attention. Tokens without a label need nothing after the last attention."""
    size, width = config.hidden_size, config.num_attention_heads * config.head_dim
    into = size * (width + 2 * config.num_key_value_heads * config.head_dim)
    after = width * size + 3 * size * config.intermediate_size
    tokens, layers = sum(job.lengths), config.num_hidden_layers
    labelled = sum(round(job.labelled * (length - 1)) for length in job.lengths)
    weights = tokens * (layers * into + (layers - 1) * after)
    weights += labelled * (after + config.vocab_size * size)
    return 6.0 * (weights + layers * width * sum(length**2 for length in job.lengths))


def save_random(config: ModelConfig, folder: Path) -> None:
    """A checkpoint of ``config`` with random weights."""
    model = CausalLM(config, dtype=torch.float32)
    model.initialise(seed=0)
    save_checkpoint(folder, model)


def print_table(outcomes: list[Outcome]) -> None:
    """A Markdown table; ratios are to the best peer."""
    peers = [outcome.rate for outcome in outcomes if not outcome.name.startswith("hone")]
    best = max(peers, default=0.0)
    print("| | tokens/s | to the best peer | share of the matrix rate | ready after | first loss |")
    print("|---|---|---|---|---|---|")
    for o in outcomes:
        ratio = f"{o.rate / best:.2f}x" if best else "-"
        print(
            f"| {o.name} | {o.rate:,.0f} | {ratio} | {o.share:.0%} | {o.start_seconds:.0f} s "
            f"| {o.first_loss:.4f} |"
        )


def compare(options: argparse.Namespace, machine: Machine, folder: Path) -> None:
    """The 17M shape against transformers."""
    config = ModelConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    save_random(config, folder / "17m")
    rows = 2 if options.quick else options.rows
    job = Job(folder / "17m", (LENGTH,) * rows, 1.0, options.threads)
    names = ["hone, fp32", "transformers, fp32"]
    names += [] if options.quick else ["transformers, fp32, compiled"]
    if preferred_dtype() == torch.bfloat16 or options.emulated:
        names += ["hone, bf16", "transformers, bf16 autocast"]
        if not options.quick:
            names += [
                "transformers, bf16 autocast, compiled",
                "transformers, bf16 weights, compiled",
            ]
    else:
        print("This processor has no bfloat16 instructions: bf16 is left out.\n")
    repeats = 2 if options.quick else options.steps
    outcomes = race(names, job, repeats, flops_of(config, job), machine)
    print(f"Llama shape, {config.parameter_count / 1e6:.1f}M, batch {rows} x {LENGTH}\n")
    print_table(outcomes)


def sizes(options: argparse.Namespace, machine: Machine, folder: Path) -> None:
    """hone alone on short sequences with labels on their last third, as in question and query."""
    chooser = random.Random(0)
    lengths: list[int] = []
    while sum(lengths) < 8192:
        lengths.append(chooser.randint(30, 120))
    lengths.sort()
    print(f"{len(lengths)} sequences of 30 to 120 tokens, {sum(lengths):,} tokens per step\n")
    for width in (192, 256, 320):
        for layers in (4, 6):
            config = ModelConfig(
                vocab_size=4096,
                hidden_size=width,
                intermediate_size=(8 * width // 3 + 63) // 64 * 64,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                head_dim=64,
                max_position_embeddings=512,
                tie_word_embeddings=True,
            )
            place = folder / f"{width}x{layers}"
            save_random(config, place)
            job = Job(place, tuple(lengths), 1 / 3, options.threads)
            names = ["hone, fp32"]
            if preferred_dtype() == torch.bfloat16 or options.emulated:
                names.append("hone, bf16")
            count = config.parameter_count / 1e6
            print(f"\nd {width}, {layers} layers, {count:.1f}M\n")
            print_table(race(names, job, options.steps, flops_of(config, job), machine))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run")
    parser.add_argument(
        "--sizes", action="store_true", help="hone alone, sizes for short sequences"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--rows", type=int, default=8, help="sequences in a batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--emulated", action="store_true", help="run bf16 on a processor that emulates it, too"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = measure()
    print(machine.describe() + "\n")
    with tempfile.TemporaryDirectory() as folder:
        (sizes if options.sizes else compare)(options, machine, Path(folder))


if __name__ == "__main__":
    main()
