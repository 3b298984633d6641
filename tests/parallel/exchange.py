"""Two processes exchange tensors; prints what they got as JSON."""

import json
import os
import sys
import time
from pathlib import Path

import torch

from hone.core.errors import HoneError

sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import in_processes


def exchange(processes):
    rank = processes.rank
    tensors = [
        torch.full((2, 3), 1.0 + rank),
        torch.full((3,), 10**rank, dtype=torch.int64),
        torch.full((0, 2), 1.0),
        torch.arange(6.0).view(2, 3).T[rank:, :1] if rank == 0 else torch.ones(3, 1),
        torch.tensor(0.25, dtype=torch.float64),
    ]
    processes.sum_(tensors)
    gathered = processes.gather(torch.full((2 * rank, 3), float(rank)).requires_grad_())
    processes.barrier()
    return {
        "first": processes.first,
        "sums": [tensor.tolist() for tensor in tensors],
        "gathered": [(list(found.shape), found.requires_grad) for found in gathered],
        "total": processes.total(0.1 + rank),
        "any": [processes.any(rank == 1), processes.any(False)],
    }


def lost(processes):
    if processes.rank == 1:
        os._exit(1)
    processes.sum_([torch.ones(3)])


def left(processes):
    if processes.rank == 1:
        try:
            with processes.leaving_on_error():
                raise ValueError
        except ValueError:
            time.sleep(0.5)  # it lives on, and the other does not wait for it
        return time.monotonic()
    try:
        processes.barrier()
    except HoneError as error:
        return [time.monotonic(), type(error).__name__]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({work.__name__: in_processes(2, work) for work in (exchange, lost, left)}))
