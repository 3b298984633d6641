"""What the processor at hand computes fastest."""

import torch


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
