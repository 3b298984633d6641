"""What the processor at hand computes fastest, and how its memory is reused."""

import ctypes
import os
import sys

import torch

# <malloc.h> of glibc: allocations at most that are mapped on their own; bytes kept when freed.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


def preferred_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32.

    A CPU without them emulates bfloat16 products about a hundred times slower than float32 ones.
    The answer depends on the processor alone, never on a timing, so that a resumed run agrees.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # AVX-512 BF16 covers Zen 4 and later and Cooper Lake and later; AMX tiles are the superset.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next allocation; returns whether it does.

    glibc gives every large block back to the system when it is freed, so that each activation of
    each training step faults its pages in anew: a third to a half of the time of a step of a small
    model. Call this once before training on a CPU. It concerns the whole process, changes no
    result, and does nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that a program may still take there."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        limits.append(int(found["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass  # no such file outside Linux: the machine's memory is what is known
    return min(limits)
