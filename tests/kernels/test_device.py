import subprocess
import sys

import torch

from hone.kernels import preferred_dtype


def test_the_preferred_dtype_follows_the_processor_and_not_the_clock():
    chosen = {preferred_dtype("cpu") for _ in range(3)}
    assert chosen <= {torch.bfloat16, torch.float32}
    assert len(chosen) == 1


def test_keeping_freed_memory_changes_no_result():
    code = (
        "import torch\n"
        "from hone.kernels import keep_freed_memory\n"
        "before = torch.arange(3_000_000.).mul(2).sum().item()\n"
        "kept = keep_freed_memory()\n"
        "after = torch.arange(3_000_000.).mul(2).sum().item()\n"
        "print(type(kept).__name__, before == after)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bool", "True"]
