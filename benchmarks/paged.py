"""Attention of one new token per sequence, from blocks of a pool and from one tensor, in turn.

    python benchmarks/paged.py
    python benchmarks/paged.py --threads 2 --rounds 9

The shape is that of the 221M model (16 query heads, 8 key/value heads of 64, 16 layers), keys and
values random in float32, blocks anywhere in the pool. The contender keeps each batch in one tensor
per layer, as long as its longest row, and attends with PyTorch's own operation and a mask where
lengths differ. A pass writes the new keys and values and attends in every layer, planning included.
Then the share of the blocks' slots that stays empty, for sizes of blocks.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch
from machine import measure
from torch.nn import functional

from hone.engine.paged import PagedCache, Row
from hone.kernels import AttentionRule
from hone.models import ModelConfig

LAYERS, HEADS, KV_HEADS, HEAD = 16, 16, 8, 64
RULE = AttentionRule(HEADS, KV_HEADS)
CONFIG = ModelConfig(9, HEADS * HEAD, 8, LAYERS, HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD)
BLOCK_SIZES = (16, 32, 64)


def mixed(count: int, seed: int = 0) -> list[int]:
    """Lengths between 16 and 1024, most of them short, as those of chats are."""
    draw = random.Random(seed)
    return [round(16 * 64 ** draw.random()) for _ in range(count)]


def paged(lengths: list[int], size: int, exact: bool, dtype: str) -> Callable[[], None]:
    """One pass of the paged cache."""
    counts = [-(-length // size) for length in lengths]
    cache = PagedCache(CONFIG, sum(counts) + 1, size, dtype, exact=exact)
    free = list(range(1, sum(counts) + 1))
    random.Random(1).shuffle(free)
    rows = [
        Row([free.pop() for _ in range(n)], at - 1, 1)
        for n, at in zip(counts, lengths, strict=True)
    ]
    qkv_NC = torch.randn(len(lengths), (HEADS + 2 * KV_HEADS) * HEAD)

    def run() -> None:
        cache.begin(rows)
        for layer in range(LAYERS):
            cache.attend(layer, qkv_NC, None, RULE, None)

    return run


def contiguous(lengths: list[int]) -> Callable[[], None]:
    """One pass over one tensor per layer."""
    batch, longest = len(lengths), max(lengths)
    layers = torch.zeros(LAYERS, 2, batch, KV_HEADS, longest, HEAD)
    new_BKD = torch.randn(batch, KV_HEADS, HEAD)
    q_BKGD = torch.randn(batch, KV_HEADS, HEADS // KV_HEADS, HEAD)
    row_B, at_B = torch.arange(batch), torch.tensor(lengths) - 1
    seen = None
    if len(set(lengths)) > 1:
        seen = (torch.arange(longest) <= at_B[:, None])[:, None, None]

    def run() -> None:
        for keys, values in layers:
            keys[row_B, :, at_B] = new_BKD
            values[row_B, :, at_B] = new_BKD
            functional.scaled_dot_product_attention(q_BKGD, keys, values, attn_mask=seen)

    return run


def in_turn(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The best milliseconds of each."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds + 1):  # the first warms up, and is as good as any if it is the best
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def waste(lengths: list[int], size: int) -> float:
    """The share of the taken slots that holds nothing."""
    taken = sum(-(-length // size) * size for length in lengths)
    return 1 - sum(lengths) / taken


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(measure().describe(), flush=True)
    print("\nMilliseconds of a pass, and in brackets the ratio to one tensor:\n")
    head = ["", "one tensor", *(f"blocks of {size}" for size in BLOCK_SIZES)]
    head += [f"{name}, blocks of 32" for name in ("exact", "int8", "bfloat16")]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    cases = {
        "8 × 160": [160] * 8,
        "8 × 1,024": [1024] * 8,
        "8 mixed": mixed(8),
        "32 × 160": [160] * 32,
        "32 mixed": mixed(32),
    }
    for name, lengths in cases.items():
        contenders = {"one": contiguous(lengths)}
        contenders |= {str(n): paged(lengths, n, False, "float32") for n in BLOCK_SIZES}
        contenders["exact"] = paged(lengths, 32, True, "float32")
        contenders |= {kind: paged(lengths, 32, False, kind) for kind in ("int8", "bfloat16")}
        best = in_turn(contenders, options.rounds)
        base = best.pop("one")
        cells = [f"{taken:.1f} ({taken / base:.2f}×)" for taken in best.values()]
        print(f"| {name} | {base:.1f} | {' | '.join(cells)} |", flush=True)
    print("\nEmpty slots of 10,000 sequences of mixed lengths (of one tensor per batch of 32):\n")
    lengths = mixed(10_000)
    batches = [lengths[first : first + 32] for first in range(0, len(lengths), 32)]
    padded = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    shares = [f"blocks of {size}: {waste(lengths, size):.1%}" for size in BLOCK_SIZES]
    print(f"{'; '.join(shares)} ({padded:.1%})")


if __name__ == "__main__":
    main()
