"""Supervised tuning: hone and TRL's SFTTrainer in turn, on the same weights and samples.

    HONE_DATA=... python benchmarks/sft.py              # the 26M shape, 8 samples a step, fp32
    HONE_DATA=... python benchmarks/sft.py --bf16       # both in bf16
    HONE_DATA=... python benchmarks/sft.py --quick      # a small model, few steps: a check

Prompts and completions of an Alpaca file, the loss on completions alone, AdamW at a constant rate
without weight decay. "hone" takes the samples of TRL's steps in TRL's order, so that the losses of
both must be the same, and they are printed side by side. "hone, own batches" is how hone trains by
itself: samples of like length together, more tokens a step. Padding is counted for what it is: TRL
fills the samples of a step up to the longest, hone lays them end to end. Every contender is a
process of its own, and they take steps in turn, so that another load on the machine hits all alike.
The first steps are left out of the rates; a step's time has all that its loop does between two.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from machine import measure

from hone.data import IGNORED, Batch, PackedBatches, Sample, pack
from hone.data.conversations import Completion
from hone.data.sft import tokenise
from hone.models import CausalLM, ModelConfig, load_model, save_checkpoint
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer
from hone.train import TrainConfig, train

VOCABULARY = 32000
SHAPE = ModelConfig(
    VOCABULARY, 384, 1024, 8, 6, max_position_embeddings=2048, tie_word_embeddings=True
)
SMALL = ModelConfig(
    VOCABULARY, 64, 128, 2, 2, max_position_embeddings=2048, tie_word_embeddings=True
)
NAMES = ("TRL", "hone", "hone, own batches")


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is given; ``folder`` has a checkpoint with its tokenizer."""

    folder: Path
    data: Path
    steps: int
    rows: int
    length: int
    rate: float
    precision: str
    tokens_per_step: int
    threads: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes.

    Attributes:
        trained: positions with a label.
        real: positions of samples.
        computed: positions, padding included.
    """

    trained: int
    real: int
    computed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a contender did: of each step its work and loss, and the most memory it held."""

    work: list[Work]
    losses: list[float]
    peak_bytes: int


def read_pairs(data: Path) -> list[tuple[str, str]]:
    """Prompts and completions; a prompt ends with a line, so that no token crosses its end."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    return [(f"{row['instruction']}\n{row['input']}\n", row["output"]) for row in rows]


class InOrder:
    """Batches of ``rows`` samples in the order of the file."""

    def __init__(self, samples: list[Sample], rows: int) -> None:
        self._samples, self._rows = samples, rows
        self.fingerprint = f"{len(samples)} samples in order, {rows} a step"

    def at(self, step: int) -> Batch:
        """See :class:`hone.train.Batches`."""
        first = step * self._rows
        numbers = range(first, first + self._rows)
        return pack([self._samples[number % len(self._samples)] for number in numbers])


def run_hone(job: Job, own: bool, between: Callable[[], None]) -> Outcome:
    """hone's reader, batches and loop."""
    model, tokenizer = load_model(job.folder, "float32"), Tokenizer.load(job.folder)
    examples = [Completion(*pair, line) for line, pair in enumerate(read_pairs(job.data), 1)]
    samples, _ = tokenise(examples, Conversations(tokenizer), job.length)
    batches: InOrder | PackedBatches = InOrder(samples, job.rows)
    if own:
        batches = PackedBatches(samples, job.tokens_per_step, seed=0, max_length=job.length)
    settings = TrainConfig(
        steps=job.steps + 1,  # one more: the last one writes a checkpoint, and TRL writes none
        optimizer="adamw",
        learning_rate=job.rate,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        beta2=0.999,
        precision=job.precision,  # type: ignore[arg-type]
        log_every=1,
        checkpoint_every=job.steps + 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        between()
        train(
            model,
            batches,
            settings,
            folder,
            on_step=lambda counters: between() if counters.step < settings.steps else None,
        )
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    work = [
        Work(batch.n_trained, batch.n_tokens, batch.n_tokens)
        for batch in map(batches.at, range(job.steps))
    ]
    return Outcome(work, [json.loads(line)["loss"] for line in lines[: job.steps]], peak_bytes())


def run_trl(job: Job, between: Callable[[], None]) -> Outcome:
    """TRL's trainer with its defaults, but for what is asked of both and no shuffling."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turns(TrainerCallback):
        """Waits for its turn after every step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step < state.max_steps:
                between()

    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)

    rows = [{"prompt": prompt, "completion": end} for prompt, end in read_pairs(job.data)]
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job.rows,
            max_steps=job.steps + 1,
            max_length=job.length,
            learning_rate=job.rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=job.precision == "bf16",
            use_cpu=True,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job.folder),
            callbacks=[Turns()],
        )
        between()
        trainer.train()
    work = []
    for step in range(job.steps):
        numbers = [(step * job.rows + i) % len(rows) for i in range(job.rows)]
        samples = [trainer.train_dataset[number] for number in numbers]
        lengths = [len(sample["input_ids"]) for sample in samples]
        trained = sum(len(x["labels"]) - x["labels"].count(IGNORED) for x in samples)
        work.append(Work(trained, sum(lengths), max(lengths) * len(lengths)))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Outcome(work, losses[: job.steps], peak_bytes())


def peak_bytes() -> int:
    """The most resident memory of this process until now; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def contender(connection: Connection, name: str, job: Job) -> None:
    """The process of one contender: a step for every message that it gets."""
    torch.set_num_threads(job.threads)

    def between() -> None:
        connection.send(None)
        connection.recv()

    outcome = run_trl(job, between) if name == "TRL" else run_hone(job, name != "hone", between)
    connection.send(outcome)


def race(names: list[str], job: Job) -> tuple[list[Outcome], list[list[float]]]:
    """Start every contender, then let them step in turn; returns their steps' seconds too."""
    context = multiprocessing.get_context("spawn")
    lines, processes = [], []
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=contender, args=(there, name, job), daemon=True)
        process.start()
        there.close()
        print(f"starting {name} ...", file=sys.stderr, flush=True)
        here.recv()
        lines.append(here)
        processes.append(process)
    seconds: list[list[float]] = [[] for _ in names]
    for _ in range(job.steps):
        for line, taken in zip(lines, seconds, strict=True):
            begun = time.perf_counter()
            line.send(None)
            line.recv()
            taken.append(time.perf_counter() - begun)
    outcomes = []
    for line, process in zip(lines, processes, strict=True):
        line.send(None)
        outcomes.append(line.recv())
        process.join()
    return outcomes, seconds


def save_start(config: ModelConfig, source: Path, folder: Path) -> None:
    """A checkpoint with random weights, and the tokenizer that it is to have."""
    made = json.loads(source.read_text(encoding="utf-8"))
    # Some tokens were added behind the vocabulary that the shape has room for. The others are to
    # be found anywhere in a text, where this file has them normalised to the start of one: TRL
    # writes the end token into the text.
    kept = [token for token in made["added_tokens"] if token["id"] < VOCABULARY]
    made["added_tokens"] = [token | {"normalized": False} for token in kept]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    tokenizer = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(made)),
        {"tokenizer_class": "PreTrainedTokenizerFast", **named},
    )
    model = CausalLM(config, dtype=torch.float32)
    model.initialise(seed=0)
    save_checkpoint(folder, model, tokenizer)


def print_losses(names: list[str], outcomes: list[Outcome]) -> None:
    """The losses of both on the same samples."""
    if not {"TRL", "hone"} <= set(names):
        return
    theirs, ours = (outcomes[names.index(name)] for name in ("TRL", "hone"))
    print("| step | trained tokens, TRL / hone | loss, TRL | loss, hone | difference |")
    print("|---|---|---|---|---|")
    for step, (one, two) in enumerate(zip(theirs.losses, ours.losses, strict=True)):
        counts = f"{theirs.work[step].trained:,} / {ours.work[step].trained:,}"
        print(f"| {step + 1} | {counts} | {one:.5f} | {two:.5f} | {two - one:+.5f} |")
    most = float(np.abs(np.subtract(theirs.losses, ours.losses)).max())
    print(f"\nLargest difference: {most:.1e}. (TRL rounds what it logs.)\n")


def print_rates(
    names: list[str], outcomes: list[Outcome], seconds: list[list[float]], skipped: int
) -> None:
    """A Markdown table; ratios are to TRL."""

    def rates(number: int) -> list[float]:
        work, taken = outcomes[number].work[skipped:], sum(seconds[number][skipped:])
        counts = [(step.trained, step.real, step.computed) for step in work]
        return [sum(column) / taken for column in zip(*counts, strict=True)]

    peer = rates(names.index("TRL"))[0] if "TRL" in names else 0.0
    print("| | trained tokens/s | to TRL | tokens/s | positions/s, padding too | s/step | memory |")
    print("|---|---|---|---|---|---|---|")
    for number, name in enumerate(names):
        trained, real, computed = rates(number)
        ratio = f"{trained / peer:.2f}x" if peer else "-"
        each = float(np.mean(seconds[number][skipped:]))
        print(
            f"| {name} | {trained:,.0f} | {ratio} | {real:,.0f} | {computed:,.0f} | {each:.2f} "
            f"| {outcomes[number].peak_bytes / 1e9:.2f} GB |"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few steps: a check")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--steps", type=int, default=12, help="of each contender")
    parser.add_argument("--rows", type=int, default=8, help="samples of a step")
    parser.add_argument("--length", type=int, default=1024, help="positions of a sample at most")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--tokens-per-step", type=int, default=8192, help="of hone's own batches")
    parser.add_argument("--bf16", action="store_true", help="both compute in bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", default=os.environ.get("HONE_DATA", ""), help="see HONE_DATA")
    options = parser.parse_args()
    data = Path(options.data) / "instruction_samples" / "alpaca_en_demo.json"
    source = Path(options.data) / "tokenizers" / "llama-32k" / "tokenizer.json"
    for file in (data, source):
        if not file.is_file():
            parser.error(f"set HONE_DATA (or --data) to a folder that has {file.name}: no {file}")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(options.threads)
    config = SMALL if options.quick else SHAPE
    steps, rows, tokens = options.steps, options.rows, options.tokens_per_step
    if options.quick:
        steps, rows, tokens = 4, 2, 1024
    else:
        print(measure().describe() + "\n", flush=True)
    names = [name for name in NAMES if name in options.only]
    with tempfile.TemporaryDirectory() as folder:
        save_start(config, source, Path(folder) / "start")
        job = Job(
            folder=Path(folder) / "start",
            data=data,
            steps=steps,
            rows=rows,
            length=options.length,
            rate=options.rate,
            precision="bf16" if options.bf16 else "fp32",
            tokens_per_step=tokens,
            threads=options.threads,
        )
        outcomes, seconds = race(names, job)
    count = config.parameter_count / 1e6
    print(f"Llama shape, {count:.1f}M, {rows} samples a step, {job.precision}\n")
    print_losses(names, outcomes)
    print_rates(names, outcomes, seconds, skipped=2 if steps > 3 else 0)


if __name__ == "__main__":
    main()
