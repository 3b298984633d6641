"""Mixture of experts: hone and transformers' three forms in turn, on the same weights and tokens.

    python benchmarks/experts.py            # three shapes, forward and forward with backward
    python benchmarks/experts.py --quick    # the small shape only, two turns

Routing changes from turn to turn, so that one token's experts come from memory and not from a
cache, as in a model of many layers. Freed memory is kept for all contenders alike. Prints the
median turn, how many times faster than each peer hone is (above 1: hone is faster), and hone's
share of the machine's matrix rate, or for one token of its reading rate.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from machine import Machine, measure
from torch import Tensor, nn

from hone.kernels import expert_mix, keep_freed_memory, route

Contender = Callable[[Tensor, Tensor, Tensor], Tensor]
PEERS = ("eager", "grouped_mm", "batched_mm")


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer of ``experts`` of which a token takes ``per_token``, and a batch of ``tokens``."""

    experts: int
    per_token: int
    hidden: int
    inner: int
    tokens: int

    @property
    def label(self) -> str:
        """For a table."""
        return (
            f"X {self.experts}, k {self.per_token}, E {self.hidden}, F {self.inner}, "
            f"N {self.tokens}"
        )

    @property
    def weights(self) -> int:
        """Numbers in the three matrices of one expert."""
        return 3 * self.hidden * self.inner

    @property
    def copied_bytes(self) -> int:
        """What batched_mm copies: the weights of every token's experts."""
        return 4 * self.weights * self.per_token * self.tokens


SHAPES = (
    Shape(experts=8, per_token=2, hidden=512, inner=1408, tokens=512),
    Shape(experts=60, per_token=4, hidden=1024, inner=704, tokens=1024),
    Shape(experts=8, per_token=2, hidden=512, inner=1408, tokens=1),
    Shape(experts=60, per_token=4, hidden=1024, inner=704, tokens=1),
)


def contenders(shape: Shape) -> tuple[nn.Module, dict[str, Contender]]:
    """The experts of a transformers layer, and what computes them; all share its weights."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
    )
    experts = MixtralExperts(config)
    for weight in experts.parameters():
        nn.init.normal_(weight, std=0.02)

    def hone(x_NE: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
        return expert_mix(x_NE, weights_NK, experts_NK, experts.gate_up_proj, experts.down_proj)

    def peer(form: str) -> Contender:
        def run(x_NE: Tensor, weights_NK: Tensor, experts_NK: Tensor) -> Tensor:
            config._experts_implementation = form
            mixed: Tensor = experts(x_NE, experts_NK, weights_NK)
            return mixed

        return run

    peers = {f: peer(f) for f in PEERS if f != "batched_mm" or shape.copied_bytes < 1 << 30}
    return experts, {"hone": hone, **peers}


def race(shape: Shape, backward: bool, turns: int, limit: float) -> dict[str, float]:
    """Seconds of the median turn of every contender.

    One that has taken ``limit`` seconds in all takes no further turn.
    """
    torch.manual_seed(0)
    module, runners = contenders(shape)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    batches = []
    for _ in range(turns + 1):
        x_NE = torch.randn(shape.tokens, shape.hidden)
        logits_NX = torch.randn(shape.tokens, shape.experts)
        batches.append((x_NE, *route(logits_NX, shape.per_token, normalise=True)))
    with torch.no_grad():
        expected_NE = runners["hone"](*batches[0])
        for run in runners.values():
            torch.testing.assert_close(run(*batches[0]), expected_NE, atol=1e-4, rtol=1e-4)
    for turn in range(turns + 1):
        for number, (name, run) in enumerate(runners.items()):
            if sum(seconds[name]) > limit:
                continue
            # Not the batch of the contender before: its experts are still in the cache.
            x_NE, weights_NK, experts_NK = batches[(turn + 2 * number) % len(batches)]
            x_NE, weights_NK = (t.clone().requires_grad_(backward) for t in (x_NE, weights_NK))
            start = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y_NE = run(x_NE, weights_NK, experts_NK)
                if backward:
                    y_NE.sum().backward()
            taken = time.perf_counter() - start
            if turn:  # the first one warms up
                seconds[name].append(taken)
            module.zero_grad(set_to_none=True)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def row(shape: Shape, backward: bool, medians: dict[str, float], machine: Machine) -> str:
    """One line of the table."""
    ours = medians["hone"]
    ratios = [f"{medians[p] / ours:.2f}x" if p in medians else "-" for p in PEERS]
    work = shape.weights * shape.per_token * shape.tokens
    if shape.tokens > 1:
        rate = 2.0 * work * (3 if backward else 1) / ours / (machine.fp32_gflops * 1e9)
        share = f"{rate:.0%} of products"
    else:
        share = "" if backward else f"{4.0 * work / ours / machine.memory_gbs / 1e9:.0%} of reading"
    mode = "forward, backward" if backward else "forward"
    return f"| {shape.label} | {mode} | {ours * 1e3:.1f} | {' | '.join(ratios)} | {share} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small shape only, two turns")
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each contender")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds a contender may take")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    machine = measure()
    print(machine.describe() + "\n")
    print(f"| fp32 | | hone, ms | {' | '.join(f'to {p}' for p in PEERS)} | hone's share |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES[:1] if options.quick else SHAPES:
        for backward in (False, True):
            turns = 2 if options.quick else options.turns
            medians = race(shape, backward, turns, options.limit)
            print(row(shape, backward, medians, machine), flush=True)


if __name__ == "__main__":
    main()
