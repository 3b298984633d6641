"""Scans of state space models: hone and transformers' slow path in turn, in one process.

    python benchmarks/scan.py            # the shapes of mamba-130m and mamba2-130m, 512 tokens
    python benchmarks/scan.py --quick    # 64 tokens

"Slow path" is transformers' name for what it runs where CUDA kernels are not installed. Both get
the same numbers and take turns, so that another load on the machine hits both alike; each row is
the fastest run of each. Freed memory is kept for both, which favours the one that allocates more.
The last column is the largest difference of outputs as a share of the largest output.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from machine import measure
from torch import Tensor
from torch.nn import functional

from hone.kernels import keep_freed_memory
from hone.kernels.convolution import causal_convolution
from hone.kernels.scan import selective_scan
from hone.kernels.scan_dual import state_space_dual

# The two checkpoints' shapes.
CHANNELS, STATE, TAPS = 1536, 16, 4
HEADS, WIDTH, GROUPS, STATE2, CHUNK = 24, 64, 1, 128, 256
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same computation twice: from inputs with a row per token to outputs of the same shape."""

    name: str
    inputs: tuple[Tensor, ...]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]

    def works(self, backward: bool) -> tuple[Work, Work]:
        """hone's and transformers' run, with the gradients of all inputs or without any."""
        leaves = [x.clone().requires_grad_(backward) for x in self.inputs]
        with torch.no_grad():
            pull = torch.randn_like(self.ours(*self.inputs))

        def run(function: Callable[..., Tensor]) -> Work:
            def work() -> object:
                with torch.set_grad_enabled(backward):
                    y = function(*leaves)
                return torch.autograd.grad(y, leaves, pull) if backward else y

            return work

        return run(self.ours), run(self.theirs)

    def difference(self) -> float:
        """The largest difference of outputs as a share of the largest output."""
        with torch.no_grad():
            ours, theirs = self.ours(*self.inputs), self.theirs(*self.inputs)
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def steps(*shape: int) -> Tensor:
    """Step sizes as a trained model has them: mostly between 0.001 and 0.1, some larger."""
    return functional.softplus(torch.randn(shape) * 1.5 - 4)


def scan_of_mamba(batch: int, length: int) -> Pair:
    """The scan of equation 2 with its D term."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    tokens = batch * length
    bounds = list(range(0, tokens + 1, length))

    def ours(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return selective_scan(x, delta, A, B, C, D, bounds)[0]

    def theirs(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        x, delta, B, C = (rows.view(batch, length, -1).mT for rows in (x, delta, B, C))
        return mamba_selective_scan(x, delta, A, B, C, D).mT.reshape(tokens, -1)

    inputs = (
        torch.randn(tokens, CHANNELS),
        steps(tokens, CHANNELS),
        -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1),
        torch.randn(tokens, STATE),
        torch.randn(tokens, STATE),
        torch.ones(CHANNELS),
    )
    return Pair(f"Mamba scan, {batch} x {length}", inputs, ours, theirs)


def scan_of_mamba2(batch: int, length: int) -> Pair:
    """The chunked scan with its D term; each side cuts chunks of its own default size."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    tokens = batch * length
    bounds = list(range(0, tokens + 1, length))

    def ours(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return state_space_dual(x, dt, A, B, C, D, bounds)[0]

    def theirs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        x, dt, B, C = (rows.unflatten(0, (batch, length)) for rows in (x, dt, B, C))
        return mamba2_chunk_scan(x, dt, A, B, C, CHUNK, D=D).flatten(0, 1)

    inputs = (
        torch.randn(tokens, HEADS, WIDTH),
        steps(tokens, HEADS),
        -torch.linspace(1, 16, HEADS),
        torch.randn(tokens, GROUPS, STATE2),
        torch.randn(tokens, GROUPS, STATE2),
        torch.ones(HEADS),
    )
    return Pair(f"Mamba-2 scan, {batch} x {length}", inputs, ours, theirs)


def short_convolution(batch: int, length: int) -> Pair:
    """The filter before the scan, without its activation."""
    from transformers.models.mamba.modeling_mamba import causal_conv1d_fn

    tokens = batch * length
    bounds = list(range(0, tokens + 1, length))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_convolution(x, weight, bias, bounds)[0]

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = causal_conv1d_fn(x.view(batch, length, -1).mT, weight, bias)
        return y.mT.reshape(tokens, -1)

    inputs = (torch.randn(tokens, CHANNELS), torch.randn(CHANNELS, TAPS), torch.randn(CHANNELS))
    return Pair(f"convolution, {batch} x {length}", inputs, ours, theirs)


def step_of_mamba(batch: int) -> Pair:
    """One token of every sequence."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_state_update

    whole = scan_of_mamba(batch, 1)
    # Each keeps its state as it likes to have it; theirs is changed in place.
    kept = torch.randn(batch, CHANNELS, STATE)
    ours_kept = kept.mT.contiguous().mT

    def ours(*rows: Tensor) -> Tensor:
        return selective_scan(*rows, list(range(batch + 1)), ours_kept)[0]

    def theirs(*rows: Tensor) -> Tensor:
        return mamba_selective_state_update(kept, *rows)

    return Pair(f"Mamba step of {batch}", whole.inputs, ours, theirs)


def step_of_mamba2(batch: int) -> Pair:
    """One token of every sequence."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update

    whole = scan_of_mamba2(batch, 1)
    kept = torch.randn(batch, HEADS, WIDTH, STATE2)
    ours_kept = kept.clone()

    def ours(*rows: Tensor) -> Tensor:
        return state_space_dual(*rows, list(range(batch + 1)), ours_kept)[0]

    def theirs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        dt = dt[:, :, None].expand(-1, -1, WIDTH)
        A = A[:, None, None].expand(-1, WIDTH, STATE2)
        D = D[:, None].expand(-1, WIDTH)
        return mamba2_selective_state_update(kept, x, dt, A, B, C, D)

    return Pair(f"Mamba-2 step of {batch}", whole.inputs, ours, theirs)


def race(works: tuple[Work, ...], rounds: int, budget: float) -> list[float]:
    """Milliseconds of each one's fastest run, in turn until ``rounds`` or ``budget`` seconds."""
    best = [float("inf")] * len(works)
    begun = time.perf_counter()
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[i] = min(best[i], 1e3 * (time.perf_counter() - start))
        if time.perf_counter() - begun > budget:
            break
    return best


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 tokens instead of 512")
    parser.add_argument("--rounds", type=int, default=30, help="runs of each at most")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per row, about")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    print(measure().describe() + "\n")
    length = 64 if options.quick else 512
    scans = [make(batch, length) for make in (scan_of_mamba, scan_of_mamba2) for batch in (1, 4)]
    scans += [short_convolution(batch, length) for batch in (1, 4)]
    single = [make(batch) for make in (step_of_mamba, step_of_mamba2) for batch in (1, 8)]
    rows = [(pair, False) for pair in scans + single] + [(pair, True) for pair in scans]
    print("| | | hone, ms | transformers, ms | ratio | difference |")
    print("|---|---|---|---|---|---|")
    for pair, backward in rows:
        difference = pair.difference()
        ours, theirs = race(pair.works(backward), options.rounds, options.budget)
        way = "forward and backward" if backward else "forward"
        print(
            f"| {pair.name} | {way} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f}x "
            f"| {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
