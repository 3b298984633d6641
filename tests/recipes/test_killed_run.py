"""A run that is killed at any moment goes on with the same command, to the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny_recipe import write_recipe

from hone.core.files import sha256_file
from hone.core.seeds import rng


def start(recipe: Path, out: Path) -> subprocess.Popen:
    code = "from hone.cli.app import main; main()"
    command = [sys.executable, "-c", code, "run", str(recipe), "-o", str(out), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


def test_killed_at_random_moments(tmp_path):
    recipe = write_recipe(tmp_path)
    begun = time.monotonic()
    assert start(recipe, tmp_path / "whole").wait(timeout=300) == 0
    seconds = time.monotonic() - begun

    random = rng(time.time_ns(), "kill")
    out, kills = tmp_path / "killed", []
    for _ in range(3):
        process = start(recipe, out)
        kills.append(random.uniform(0.3, 1.0) * seconds)
        try:
            process.wait(timeout=kills[-1])
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert start(recipe, out).wait(timeout=300) == 0, kills

    for name in ("checkpoint/model.safetensors", "int8/model.safetensors", "eval/records.jsonl"):
        assert sha256_file(out / name) == sha256_file(tmp_path / "whole" / name), (name, kills)
    steps = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps)), kills
    assert not [item.name for item in out.iterdir() if item.name.startswith(".hone-tmp")]
