"""Decoding speed: hone, transformers, llama.cpp and OpenVINO in turn, on the same shape.

    python benchmarks/decode_peers.py
    python benchmarks/decode_peers.py --quick                # a 32M shape, fewer rounds
    python benchmarks/decode_peers.py --profile              # where hone's decode step goes
    python benchmarks/decode_peers.py --keep FOLDER          # the checkpoints, for converters
    python benchmarks/decode_peers.py --keep FOLDER --llama-python PYTHON \\
        --gguf fp32=bench-f32.gguf --gguf int8=bench-q8_0.gguf \\
        --openvino-python PYTHON --openvino fp32=ov-bf16 --openvino int8=ov-int8

Random weights in the 221M Llama shape; prompts of 128 random tokens, 32 new tokens after the first,
greedy, at batch 1, 8 and 32. Every contender is a process of its own with the same number of
threads, in the environment that --llama-python or --openvino-python names; they take turns, and the
best round of each counts. Peers that are not there, or cannot run, are left out with a line that
says so. Ratios are to the best peer of the same number format.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from decode_profile import profile
from generation import shape, write_models
from machine import measure

from hone.kernels import preferred_dtype

PROMPT_TOKENS, NEW_TOKENS = 128, 32
_PATIENCE = 600.0  # seconds for one round
SCRIPT = Path(__file__).with_name("decode_contenders.py")


@dataclass
class Contender:
    """A process that generates when it is told to."""

    who: str
    variant: str
    path: str
    python: str = sys.executable
    version: str = ""
    best: dict[tuple[int, str], float] = field(default_factory=dict)  # (batch, phase) to seconds
    process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.who} {self.version} {self.variant}"

    def start(self, threads: int, log: Any) -> bool:
        """False, with a line that says so, when it cannot run."""
        print(f"starting {self.who} {self.variant} ...", file=sys.stderr, flush=True)
        command = [self.python, str(SCRIPT), self.who, self.path, self.variant, str(threads)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
            answer = self._answer()
        except OSError as error:
            answer = {"ready": None, "why": str(error)}
        if answer.get("ready") is None:
            print(f"left out: {self.who} {self.variant}: {_short(answer)}", flush=True)
            self.process = None
            return False
        self.version = answer["ready"]
        return True

    def run(self, job: dict[str, int], counts: bool) -> None:
        """One round; drops out, with a line that says so, when it fails."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "prefill" not in answer:
            print(f"{self.name} ends at batch {job['batch']}: {_short(answer)}", flush=True)
            self.process = None
        elif counts:
            for phase in ("prefill", "decode"):
                key = job["batch"], phase
                self.best[key] = min(answer[phase], self.best.get(key, float("inf")))

    def rate(self, batch: int, phase: str) -> float | None:
        """Tokens per second of the best round."""
        seconds = self.best.get((batch, phase))
        tokens = batch * (PROMPT_TOKENS if phase == "prefill" else NEW_TOKENS)
        return None if seconds is None else tokens / seconds

    def end(self) -> None:
        """Tell it that it is over."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        # A peer that hangs is ended, and then left out as one that ends by itself.
        patience = threading.Timer(_PATIENCE, self.process.kill)
        patience.start()
        line = self.process.stdout.readline()
        patience.cancel()
        return json.loads(line) if line else {"why": f"it ended with code {self.process.wait()}"}


def _short(answer: dict[str, Any]) -> str:
    return " ".join(str(answer.get("why")).split())[:160]


def contenders(options: argparse.Namespace, original: Path, int8: Path) -> list[Contender]:
    """All that are asked for."""
    formats = ["fp32"]
    if preferred_dtype() == torch.bfloat16 or options.emulated:
        formats.append("bf16")
    else:
        print("This processor has no bfloat16 instructions: bf16 is left out.")
    found = [Contender("hone", name, str(original)) for name in formats]
    found.append(Contender("hone", "int8", str(int8)))
    found += [Contender("transformers", name, str(original)) for name in formats]
    found += [Contender("generate_batch", name, str(original)) for name in formats]
    for who, python, files in (
        ("llama.cpp", options.llama_python, options.gguf),
        ("OpenVINO", options.openvino_python, options.openvino),
    ):
        if not files:
            print(f"left out: {who}: no model is given for it.")
        for variant, equals, path in (text.partition("=") for text in files):
            if not equals:
                raise SystemExit(f"{variant!r}: give a format and a file, such as fp32=model.")
            if variant != "bf16" or "bf16" in formats:
                found.append(Contender(who, variant, path, python))
    return found


def race(chosen: list[Contender], options: argparse.Namespace) -> None:
    """Let all run in turn."""
    vocabulary = shape(options.quick).vocab_size
    job = {"prompt": PROMPT_TOKENS, "vocabulary": vocabulary}
    seed = 0
    for batch in options.batches:
        for number in range(options.rounds + 1):
            for one in chosen:
                seed += 1
                # The first round warms up, and is short.
                new = NEW_TOKENS if number else 2
                one.run(job | {"batch": batch, "new": new, "seed": seed}, counts=number > 0)
        print(f"batch {batch} is done", file=sys.stderr, flush=True)


def table(chosen: list[Contender], batches: list[int]) -> str:
    """Rates in Markdown; those of hone with the ratio to the best peer of the same format."""
    columns = [("prefill", batches[0]), *(("decode", batch) for batch in batches)]
    if len(batches) > 1:
        columns.insert(1, ("prefill", batches[-1]))
    lines = [["tokens/s", *(f"{phase} ×{batch}" for phase, batch in columns)]]
    lines.append(["---"] * len(lines[0]))
    for one in chosen:
        cells = []
        for phase, batch in columns:
            rate = one.rate(batch, phase)
            peers = [
                other.rate(batch, phase) or 0.0
                for other in chosen
                if other.who != "hone" and other.variant == one.variant
            ]
            best = max(peers, default=0.0)
            text = "-" if rate is None else f"{rate:,.0f}"
            if one.who == "hone" and rate is not None and best:
                text += f" ({rate / best:.2f}×)"
            cells.append(text)
        lines.append([one.name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, one round")
    parser.add_argument("--profile", action="store_true", help="hone alone: where a step goes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--emulated", action="store_true", help="bf16 without its instructions too")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the checkpoints")
    parser.add_argument("--only", nargs="+", help="contenders by name, such as hone llama.cpp")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--gguf", action="append", default=[], metavar="FORMAT=FILE")
    parser.add_argument("--openvino-python", default=sys.executable)
    parser.add_argument("--openvino", action="append", default=[], metavar="FORMAT=FOLDER")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    torch.set_num_threads(options.threads)
    print(measure().describe() + "\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        original, int8 = folder / "bf16", folder / "int8"
        if not (original.is_dir() and int8.is_dir()):
            original, int8 = write_models(folder, options.quick)
        if options.profile:
            profile(original, int8, options.batches, PROMPT_TOKENS, NEW_TOKENS, options.emulated)
            return
        with open(Path(temporary) / "log", "w") as log:
            chosen = contenders(options, original, int8)
            chosen = [c for c in chosen if options.only is None or c.who in options.only]
            chosen = [one for one in chosen if one.start(options.threads, log)]
            race(chosen, options)
            for one in chosen:
                one.end()
        print("\n" + table(chosen, options.batches))


if __name__ == "__main__":
    main()
