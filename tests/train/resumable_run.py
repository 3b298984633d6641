"""Train in forked processes, kill some of them, and print the hashes of what they leave.

A program of its own: it forks before any thread starts, so that many kills cost one start of torch.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from tiny import tiny_batches, tiny_model

from hone.train import TrainConfig, checkpoints, train
from hone.train.optimizers import Optimizer

CONFIG = TrainConfig(
    steps=24,
    warmup_steps=4,
    log_every=3,
    checkpoint_every=4,
    keep_last=2,
    ema=0.9,
    precision="fp32",
    micro_batches=2,
)


def run(folder, die_in_save=None):
    """Train to the end, or to the middle of the write number ``die_in_save``."""
    write, count = checkpoints._write_safetensors, 0

    def dying(path, tensors):
        nonlocal count
        count += 1
        if count == die_in_save:
            half = dict(list(tensors.items())[: len(tensors) // 2])
            write(path, half)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, tensors)

    checkpoints._write_safetensors = dying
    model = tiny_model()
    train(model, tiny_batches(128), CONFIG, folder)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    (folder / "weights.sha256").write_text(digest.hexdigest())


def in_a_child(folder, kill_after=None, die_in_save=None):
    """Whether a child process got to the end."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, die_in_save)
            os._exit(0)
        finally:
            traceback.print_exc()  # reached only when something was raised
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFEXITED(status)


def summary(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["tokens_per_second"], record["memory_bytes"]
    last = folder / "checkpoints" / f"step-{CONFIG.steps:08d}" / "manifest.json"
    return {
        "weights": (folder / "weights.sha256").read_text(),
        "state": json.loads(last.read_text())["files"],
        "metrics": records,
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


def main():
    """``resumable_run.py FOLDER``: the summaries of an unbroken and of broken runs, as JSON."""
    torch.set_num_threads(1)
    root, rng = Path(sys.argv[1]), random.Random(7)
    # What torch imports at the first optimizer is imported once, here; no gradients, no threads.
    Optimizer(tiny_model(), CONFIG, torch.float32).step(0.0, 0)
    begun = time.monotonic()
    in_a_child(root / "whole")
    seconds = time.monotonic() - begun
    killed = 0
    for trial in range(2):
        folder = root / f"timed-{trial}"
        for _ in range(3):
            killed += not in_a_child(folder, kill_after=rng.uniform(0.2, 0.9) * seconds)
        in_a_child(folder)
    folder = root / "saving"
    for write in (1, 3):
        killed += not in_a_child(folder, die_in_save=write)
    in_a_child(folder)
    report = {name.name: summary(name) for name in sorted(root.iterdir())}
    print(json.dumps({"killed": killed, "runs": report}))


if __name__ == "__main__":
    main()
