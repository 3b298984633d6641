"""Run commands in one and in two processes; prints what came of it as JSON."""

import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file

import hone.evals.report
import hone.parallel
import hone.recipes.finetune.work
import hone.recipes.from_scratch
import hone.recipes.run
import hone.recipes.text_stages
from hone.cli.app import app
from hone.core import progress

sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import in_processes

ROOT, MODEL, RECIPE, TEXT2SQL, DATA = map(Path, sys.argv[1:])
TUNING = ["steps=4", "learning_rate=0.001", "device=cpu", "precision=fp32", "memory=4000000000"]
COMMANDS = {
    "text": ["run", str(RECIPE)],
    "text2sql": ["run", str(TEXT2SQL)],
    "finetune": ["finetune", str(MODEL), "--data", str(DATA), *(f"--set={one}" for one in TUNING)],
}


def command(arguments, out):
    """Work of a process: the command, and what it showed."""

    def work(processes):
        shown = out.with_suffix(f".{processes.rank}")
        hone.parallel.join_processes = lambda: processes
        begun = time.monotonic()
        with open(shown, "w") as file, redirect_stdout(file), redirect_stderr(file):
            progress.show(Console(file=file))
            app([*arguments, "-o", str(out)], standalone_mode=False)
        return {"shown": shown.read_text(), "seconds": time.monotonic() - begun}

    return work


found = {}
for name, arguments in COMMANDS.items():
    entry = found[name] = {}
    for count in (1, 2):
        out = ROOT / f"{name}{count}"
        entry[f"{count} first"] = in_processes(count, command(arguments, out))
    # Now there is nothing left to do.
    entry["2 again"] = in_processes(2, command(arguments, ROOT / f"{name}2"))
    one, two = (load_file(ROOT / f"{name}{n}/checkpoint/model.safetensors") for n in (1, 2))
    entry["same"] = one.keys() == two.keys()
    entry["distance"] = max(float((one[key] - two[key]).abs().max()) for key in one)
    lines = (ROOT / f"{name}2/metrics.jsonl").read_text().splitlines()
    entry["steps"] = [line["step"] for line in map(json.loads, lines) if "loss" in line]
json.dump(found, sys.stdout)
sys.stdout.flush()
os._exit(0)
