"""Training speed of adapters: hone and peft in turn, on the same weights and tokens, in one run.

    python benchmarks/adapters.py             # LoRA on the 26M and the 100M shape
    python benchmarks/adapters.py --qlora     # a base in NF4 too, against peft and bitsandbytes
    python benchmarks/adapters.py --quick     # two rows, two steps, the small shape

All linear layers but the head are adapted. Batches have sequences of one length, and of the lengths
of instruction data, which peft's users pad to the longest. Every contender is a process of its own,
and they take steps in turn, so that another load on the machine hits all alike. Prints tokens per
second without padding (the median step), the ratio to peft, and the most bytes that tensors hold in
a step, the model's own included.
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
from machine import measure
from turns import Turns

from hone.adapters import LoraConfig, add_adapter
from hone.kernels import keep_freed_memory
from hone.models import CausalLM, ModelConfig, load_model, save_checkpoint
from hone.quant import quantize_nf4_model
from hone.train import TensorBatch
from hone.train.memory import measure_peak

RANK, ALPHA = 16, 32
IGNORED = -100
SHAPES = {
    "26M": ModelConfig(32000, 384, 1024, 8, 6, 6, tie_word_embeddings=True),
    "100M": ModelConfig(16000, 768, 2048, 12, 12, 12, tie_word_embeddings=True),
}
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is given: a checkpoint and the lengths of the sequences of its batch."""

    folder: Path
    lengths: tuple[int, ...]
    dropout: float
    threads: int


def sequences(job: Job, vocab_size: int) -> list[torch.Tensor]:
    """Random tokens in sequences of the given lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab_size, (length,), generator=generator) for length in job.lengths]


def hone_step(job: Job, quantized: bool) -> tuple[Step, torch.nn.Module]:
    """A plain loop around hone's model: packed sequences, backward, clip, fused AdamW."""
    keep_freed_memory()
    model = load_model(job.folder, "float32")
    assert isinstance(model, CausalLM)
    if quantized:
        quantize_nf4_model(model)
    add_adapter(model, LoraConfig(r=RANK, alpha=ALPHA, dropout=job.dropout))
    model.train()
    rows = sequences(job, model.config.vocab_size)
    labels = torch.cat([torch.cat((ids[1:], torch.tensor([IGNORED]))) for ids in rows])
    batch = TensorBatch(
        input_ids_N=torch.cat(rows),
        position_ids_N=torch.cat([torch.arange(len(ids)) for ids in rows]),
        cu_seqlens=torch.tensor([0, *job.lengths]).cumsum(0).int(),
        max_length=max(job.lengths),
        labels_N=labels,
        n_trained=int((labels != IGNORED).sum()),
    )
    return _loop(model, lambda: model.packed_loss(batch) / batch.n_trained), model


def peft_step(job: Job, quantized: bool) -> tuple[Step, torch.nn.Module]:
    """The same loop around peft's model: sequences padded to the longest, with a mask."""
    import peft
    import transformers

    options = {"dtype": torch.float32}
    if quantized:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(job.folder, **options)
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=job.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, settings).train()
    rows = sequences(job, model.config.vocab_size)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    mask = (labels != IGNORED).long()

    def loss() -> torch.Tensor:
        output = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        found: torch.Tensor = output.loss
        return found

    return _loop(model, loss), model


def _loop(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> Step:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def held_by(model: torch.nn.Module) -> int:
    """Bytes of a model's weights."""
    found = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def contender(connection: Connection, name: str, job: Job) -> None:
    """The process of one contender: a step for every message that it gets."""
    torch.set_num_threads(job.threads)
    start = {"hone": hone_step, "peft": peft_step}[name.partition(",")[0]]
    step, model = start(job, "NF4" in name)
    first_loss = step()
    connection.send((first_loss, held_by(model) + measure_peak(step).bytes))
    while connection.recv():
        begun = time.perf_counter()
        step()
        connection.send(time.perf_counter() - begun)


def race(names: list[str], job: Job, repeats: int) -> None:
    """Start every contender, let them step in turn, and print what they did."""
    turns = Turns(contender, names, job)
    seconds = turns.step(repeats)
    turns.end()
    tokens = sum(job.lengths)
    rates = [tokens / statistics.median(taken) for taken in seconds]
    print("| | tokens/s | to peft | peak memory | to peft | first loss |")
    print("|---|---|---|---|---|---|")
    for i, name in enumerate(names):
        peer = names.index("peft" + name[4:])
        loss, peak = turns.started[i]
        print(
            f"| {name} | {rates[i]:,.0f} | {rates[i] / rates[peer]:.2f}x | {peak / 1e6:,.0f} MB "
            f"| {peak / turns.started[peer][1]:.2f}x | {loss:.4f} |"
        )


def instruction_lengths(rows: int, longest: int) -> tuple[int, ...]:
    """Lengths as instruction data have them: most short, a few long (median 150, log-normal)."""
    chooser = random.Random(0)
    return tuple(
        min(longest, max(16, round(chooser.lognormvariate(5.0, 0.7)))) for _ in range(rows)
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run")
    parser.add_argument("--qlora", action="store_true", help="a base in NF4 as well")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--rows", type=int, default=8, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=512, help="the longest sequence")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(measure().describe() + "\n")
    rows, steps = (2, 2) if options.quick else (options.rows, options.steps)
    names = ["hone, LoRA", "peft, LoRA"]
    names += ["hone, NF4", "peft, NF4"] if options.qlora else []
    batches = {
        "equal lengths": (options.length,) * rows,
        "lengths of instructions": instruction_lengths(rows, options.length),
    }
    with tempfile.TemporaryDirectory() as folder:
        for shape in ["26M"] if options.quick else options.shapes:
            config = SHAPES[shape]
            model = CausalLM(config, dtype=torch.float32)
            model.initialise(seed=0)
            save_checkpoint(Path(folder) / shape, model)
            del model
            for kind, lengths in batches.items():
                job = Job(Path(folder) / shape, lengths, options.dropout, options.threads)
                count = config.parameter_count / 1e6
                print(f"\nLlama shape, {count:.1f}M, {kind}: {rows} rows, {sum(lengths)} tokens\n")
                race(names, job, steps)


if __name__ == "__main__":
    main()
