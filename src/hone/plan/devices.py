"""Devices: their memory, bandwidth and arithmetic rate.

Public figures of the maker: NVIDIA's data sheets of B200 (HGX), H200, H100 SXM5, A100 SXM4, L40S,
L4 and T4, its architecture papers of Ampere and Ada for the RTX 3090 and 4090. Rates are dense
ones, products of 16 bits summed in float32; memory is what ``nvidia-smi`` states.
"""

import os
import re
from dataclasses import dataclass, replace

from hone.core.errors import ConfigError
from hone.core.nearest import nearest

GB = 10**9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan is held against.

    Attributes:
        name: for people.
        memory: bytes.
        bandwidth: bytes per second between memory and processor.
        flops_16, flops_32: additions and multiplications per second in products of 16-bit and of
            float32 numbers.
        host_bandwidth: bytes per second to the host's memory; that of the memory on a CPU.
        reserved: bytes that are not for tensors: the driver's context and libraries.
        cuda: it is a GPU.
        price: of an hour, in whatever currency; 0 for unknown.
    """

    name: str
    memory: int
    bandwidth: float
    flops_16: float
    flops_32: float
    host_bandwidth: float
    reserved: int = 0
    cuda: bool = True
    price: float = 0.0

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        return max(0, self.memory - self.reserved)

    def flops(self, sixteen_bits: bool) -> float:
        """The rate in 16 bits or in float32."""
        return self.flops_16 if sixteen_bits else self.flops_32


# What the driver keeps for itself, a context of CUDA, and cuBLAS with its workspace.
_CONTEXT = 1200 * 2**20


def _gpu(
    name: str, memory: int, bandwidth: float, tera_16: float, tera_32: float, bus: float
) -> Device:
    """Memory in MiB, bandwidths in GB/s; float32 products are in TF32 where there is that."""
    return Device(
        name,
        memory * 2**20,
        bandwidth * GB,
        tera_16 * 1e12,
        tera_32 * 1e12,
        bus * GB,
        reserved=_CONTEXT,
    )


GPUS: dict[str, Device] = {
    "b200": _gpu("NVIDIA B200", 183_359, 7700, 2250, 1100, 64),
    "h200": _gpu("NVIDIA H200", 143_771, 4800, 989, 494, 64),
    "h100": _gpu("NVIDIA H100 SXM", 81_559, 3350, 989, 494, 64),
    "a100-80": _gpu("NVIDIA A100 80 GB", 81_920, 2039, 312, 156, 32),
    "a100-40": _gpu("NVIDIA A100 40 GB", 40_960, 1555, 312, 156, 32),
    "l40s": _gpu("NVIDIA L40S", 46_068, 864, 362, 183, 32),
    "l4": _gpu("NVIDIA L4", 23_034, 300, 121, 60, 32),
    "rtx-4090": _gpu("NVIDIA GeForce RTX 4090", 24_564, 1008, 165, 82.6, 32),
    "rtx-3090": _gpu("NVIDIA GeForce RTX 3090", 24_576, 936, 71, 35.6, 32),
    "t4": _gpu("NVIDIA T4", 15_360, 320, 65, 8.1, 16),
}
_ALIASES = {"a100": "a100-80", "4090": "rtx-4090", "3090": "rtx-3090"}


def find_device(name: str) -> Device:
    """The device of that name: one of :data:`GPUS`, or ``cpu`` for this machine.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = key.removeprefix("nvidia-").removeprefix("geforce-")
    key = re.sub(r"^rtx(?=\d)", "rtx-", key)
    key = _ALIASES.get(key, key)
    if key == "cpu":
        return this_cpu()
    if key not in GPUS:
        hint = nearest(key, ("cpu", *GPUS))
        raise ConfigError(
            f'hone has no figures of the device "{name}". {hint} Or give --memory, --bandwidth '
            "and --flops of yours."
        )
    return GPUS[key]


def customised(
    device: Device,
    memory: int | None = None,
    bandwidth: float | None = None,
    flops: float | None = None,
    price: float = 0.0,
) -> Device:
    """``device`` with other figures; a rate that is given counts for every format of numbers."""
    device = replace(device, price=price)
    if memory is not None:
        device = replace(device, memory=memory, reserved=min(device.reserved, memory // 10))
    if bandwidth is not None:
        host = device.host_bandwidth if device.cuda else bandwidth
        device = replace(device, bandwidth=bandwidth, host_bandwidth=host)
    return device if flops is None else replace(device, flops_16=flops, flops_32=flops)


def this_cpu() -> Device:
    """This machine's processor and memory.

    Rates are those of its cores and instructions as the system names them: two fused products per
    cycle of a vector's width. The bandwidth is a guess: 15 GB/s for each core, and no more than two
    channels of DDR4-3200 have. Give measured ones where there are some.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    information = _cpuinfo()
    flags = information.get("flags", "").split()
    width = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    rate = float(information.get("cpu MHz", "2500")) * 1e6 * (cores or 1) * width * 4
    # Without instructions of their own, 16 bits are computed in float32 at best.
    rate_16 = 2 * rate if "avx512_bf16" in flags or "amx_bf16" in flags else rate
    bandwidth = min(15e9 * (cores or 1), 51.2e9)
    return Device("this CPU", _memory(), bandwidth, rate_16, rate, bandwidth, cuda=False)


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its group's limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(file, encoding="ascii") as limit:
                sizes.append(int(limit.read()))
        except (OSError, ValueError):
            continue
    return min(size for size in sizes if size > 0)


def read_size(text: str, option: str, example: str = "a size such as 24GB, 22.5GiB or 80G") -> int:
    """``24GB``, ``22.5 GiB``, ``80G`` or a plain number.

    Args:
        option: where it was given, for the error message.
        example: what to write there, for the error message.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?(?:/S)?\s*", text.upper())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    unit = found[2] if found else ""
    factor = (_UNITS | _BINARY).get(unit)
    if not number or factor is None:
        raise ConfigError(f'{option} is "{text}"; expected {example}.')
    return int(number * factor)
