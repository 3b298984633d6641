"""What the savers of memory save, and what they cost.

    python benchmarks/memory.py

Peaks are those of tensors, as PyTorch's allocator gives them out, gradients included. Times are of
the processor, all threads together, so that another load on the machine counts little.
"""

import time

import torch
from machine import measure

from hone.data import completion_sample, pack
from hone.kernels import keep_freed_memory
from hone.models import CausalLM, ModelConfig
from hone.train import TensorBatch, TrainConfig
from hone.train.memory import measure_peak
from hone.train.optimizers import Optimizer

MODES = (("none", 1), ("selective", 1), ("blocks", 1), ("blocks", 2))
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "adafactor", "muon")
LENGTH, ROWS = 1024, 2


def recomputation() -> None:
    """Forward and backward of 6 layers over 2,048 tokens, in every mode."""
    config = ModelConfig(8192, 256, 704, 6, 8, 2, tie_word_embeddings=True)
    model = CausalLM(config, dtype=torch.float32).train()
    model.initialise(seed=0)
    ids = torch.randint(0, 8192, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    samples = [completion_sample(row[:1], row[1:]) for row in ids.tolist()]
    batch = TensorBatch.of(pack(samples))

    def work() -> None:
        model.zero_grad()
        model.packed_loss(batch).backward()

    print("| activation checkpointing | peak | processor time |\n|---|---|---|")
    for mode, every in MODES:
        model.set_activation_checkpointing(mode, every)
        work()
        model.zero_grad()
        peak = measure_peak(work).bytes
        begun = time.process_time()
        work()
        taken = time.process_time() - begun
        print(f"| {mode}, every {every} | {peak / 2**20:,.0f} MiB | {taken:.2f} s |")


def optimizers() -> None:
    """State and one step of the 17M shape, for every optimizer."""
    config = ModelConfig(8192, 384, 1024, 8, 6, 6, tie_word_embeddings=True)
    print("\n| optimizer | state, bytes per weight | processor time of a step |\n|---|---|---|")
    for name in OPTIMIZERS:
        model = CausalLM(config, dtype=torch.float32)
        model.initialise(seed=0)
        optimizer = Optimizer(model, TrainConfig(steps=10, optimizer=name), torch.float32)
        weights = dict(optimizer.masters)
        for weight in weights.values():
            weight.grad.normal_(generator=torch.Generator().manual_seed(0))
        state = [x.nbytes for key, x in optimizer.state().items() if not key.startswith("weights/")]
        optimizer.step(0.1, 0)
        begun = time.process_time()
        optimizer.step(0.1, 1)
        taken = time.process_time() - begun
        count = sum(weight.numel() for weight in weights.values())
        print(f"| {name} | {sum(state) / count:.2f} | {1000 * taken:,.0f} ms |")


def main() -> None:
    """The command."""
    keep_freed_memory()
    print(measure().describe() + "\n")
    recomputation()
    optimizers()


if __name__ == "__main__":
    main()
