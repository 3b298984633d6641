"""What this machine can do, measured in the same run as whatever is compared with it.

python benchmarks/machine.py
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hone.kernels import preferred_dtype

_SIDE = 2048  # of the square matrices
_EMULATED_SIDE = 256  # without instructions for a dtype, a larger product would take minutes
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """Best rates seen.

    Attributes:
        fp32_gflops, bf16_gflops: products of 2048 x 2048 matrices (256 x 256 where emulated).
        memory_gbs: reading 1 GiB of float32, in GB/s.
    """

    processor: str
    capability: str
    threads: int
    fp32_gflops: float
    bf16_gflops: float
    memory_gbs: float

    @property
    def best_gflops(self) -> float:
        """The faster of the two products."""
        return max(self.fp32_gflops, self.bf16_gflops)

    def describe(self) -> str:
        """One line for a report."""
        return (
            f"{self.processor} ({self.capability}), {self.threads} threads, "
            f"torch {torch.__version__}: products {self.fp32_gflops:.0f} GFLOP/s in fp32 and "
            f"{self.bf16_gflops:.0f} in bf16, reading memory {self.memory_gbs:.0f} GB/s"
        )


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of ``repeats`` runs after one to warm up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def matrix_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """GFLOP/s of a square product in ``dtype``."""
    emulated = dtype == torch.bfloat16 and preferred_dtype() != dtype
    side = _EMULATED_SIDE if emulated else _SIDE
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    out = torch.empty_like(a)
    return 2e-9 * side**3 / best_seconds(lambda: torch.mm(a, b, out=out), repeats)


def memory_rate(repeats: int = 5) -> float:
    """GB/s of summing 1 GiB."""
    block = torch.ones(_GIB // 4)
    return _GIB / best_seconds(block.sum, repeats) / 1e9


def processor_name() -> str:
    """The processor's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure(repeats: int = 5) -> Machine:
    """Measure with torch's present number of threads."""
    return Machine(
        processor=processor_name(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        fp32_gflops=matrix_rate(torch.float32, repeats),
        bf16_gflops=matrix_rate(torch.bfloat16, repeats),
        memory_gbs=memory_rate(repeats),
    )


if __name__ == "__main__":
    machine = measure()
    print(machine.describe())
    print(asdict(machine))
