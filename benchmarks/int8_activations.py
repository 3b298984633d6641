"""Int8 weights against int8 weights and activations: time by rows, and what it costs in quality.

python benchmarks/int8_activations.py [--rows 1 8 32 128] [--model PATH --text FILE]

Times are processor seconds of one layer of the 221M shape (all products of one block), the least of
some turns taken in turn. With ``--model``, a checkpoint with int8 weights, also its perplexity on a
text, both ways.
"""

import argparse
import time
from collections.abc import Callable

import torch

import hone
from hone.quant import Int8Linear, quantize_rows, use_int8_activations
from hone.quant.int8 import int8_linear
from hone.quant.int8_activations import int8_activations_linear

# Inputs and outputs of the products of a block of the 221M shape.
SHAPES = [(1024, 2048), (1024, 1024), (1024, 5632), (2816, 1024)]
_TURNS, _WINDOW = 5, 128


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


@torch.inference_mode()
def times(rows: int) -> tuple[float, float, float]:
    """Of a block's products: float32 weights, int8 weights, int8 weights and activations."""
    generator = torch.Generator().manual_seed(0)
    best = [float("inf")] * 3
    layers = []
    for inputs, outputs in SHAPES:
        weight_NK = torch.randn(outputs, inputs, generator=generator)
        x_MK = torch.randn(rows, inputs, generator=generator)
        layers.append((x_MK, weight_NK, *quantize_rows(weight_NK, torch.float32)))
    ways: list[Callable[[], object]] = [
        lambda: [torch.nn.functional.linear(x, weight) for x, weight, _, _ in layers],
        lambda: [int8_linear(x, codes, scale) for x, _, codes, scale in layers],
        lambda: [int8_activations_linear(x, codes, scale) for x, _, codes, scale in layers],
    ]
    for turn in range(_TURNS + 1):
        for number, way in enumerate(ways):
            taken = seconds(way)
            if turn:
                best[number] = min(best[number], taken)
    return best[0], best[1], best[2]


@torch.inference_mode()
def perplexities(path: str, text: str) -> tuple[int, float, float]:
    """Of a text in windows, with float and with int8 activations; and how many tokens."""
    lm = hone.load(path)
    ids = lm.tokenizer.encode(text)
    ids_BT = torch.tensor(ids[: len(ids) // _WINDOW * _WINDOW]).view(-1, _WINDOW)
    found = []
    for choice in (False, True):
        use_int8_activations(lm.model, choice)
        losses = []
        for some in ids_BT.split(16):
            logits = lm.model(some[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), some[:, 1:].flatten(), reduction="none"
            )
            losses.append(loss)
        found.append(torch.cat(losses).mean().exp().item())
    return ids_BT.numel(), found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--model", help="a checkpoint with int8 weights")
    parser.add_argument("--text", help="a file of what the model knows")
    arguments = parser.parse_args()
    print("| rows | float32, ms | int8 weights, ms | and activations, ms | ratio | GOP/s |")
    print("|---|---|---|---|---|---|")
    for rows in arguments.rows:
        plain, weights, both = times(rows)
        rate = 2e-9 * rows * sum(inputs * outputs for inputs, outputs in SHAPES) / both
        cells = " | ".join(f"{1e3 * one:.1f}" for one in (plain, weights, both))
        print(f"| {rows} | {cells} | {weights / both:.2f}× | {rate:.0f} |", flush=True)
    if arguments.model and arguments.text:
        layers = [x for x in hone.load(arguments.model).model.modules() if type(x) is Int8Linear]
        with open(arguments.text, encoding="utf-8") as file:
            tokens, known, rounded = perplexities(arguments.model, file.read())
        print(
            f"\n{len(layers)} int8 layers, {tokens:,} tokens: perplexity {known:.4f} with int8 "
            f"weights, {rounded:.4f} with int8 activations too ({rounded / known - 1:+.3%})."
        )


if __name__ == "__main__":
    main()
