"""Many streams at once on `hone serve`: nothing fails, nothing leaks, nothing is mixed up.

    python benchmarks/load.py --streams 500 --seconds 300            # what docs/serving.md reports
    python benchmarks/load.py --streams 500 --seconds 300 --vanish 0.3
    python benchmarks/load.py MODEL --streams 50 --seconds 20 -- --max-running 32

Starts a server of its own (what follows -- goes to `hone serve`), on a small model of random
weights unless one is given, and keeps so many streams open; with --vanish that share of the clients
goes away in the middle of a stream. Then it waits until nothing runs, and checks that

- no request failed otherwise than by 429, and every stream was in order;
- answers read under load are those that the same requests get alone (this needs a model that the
  server computes exactly: up to 20M parameters, or `-- --exact`);
- the cache's blocks are all free again, and the processes' memory is what it was;
- nobody waited longer than --ttft for a first token.

Prints the figures before and after; ends with 1 when a check fails.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import torch

from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.serve.bench import Load, Measured, run
from hone.serve.bench_client import Address
from hone.serve.bench_explore import Found, explore
from hone.serve.bench_picture import draw
from hone.serve.bench_report import Report, summarise
from hone.serve.bench_stream import Target, text_alone
from hone.serve.bench_workload import Ask, Lengths, drawn
from hone.text.tokenizer import Tokenizer

_MEMORY = 1.05  # of what it was, at most, and so many bytes of noise:
_NOISE = 32 << 20
# Blocks of the cache take memory when they are first used: the load before the first figures goes
# on in rounds until memory grows by no more than this.
_SETTLED, _WARM_ROUNDS = 1.01, 8
_REST = 60.0  # seconds until a server without requests must have freed all


@dataclass(frozen=True, slots=True)
class State:
    """A server at rest.

    Attributes:
        used: share of the cache's blocks that is held.
        running: sequences that run or wait.
        memory: bytes of each of its processes.
    """

    used: float
    running: float
    memory: tuple[int, ...]


def write_model(folder: Path) -> Path:
    """A small checkpoint of random weights."""
    text = "\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    tokenizer = Tokenizer.train([text], 2048)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=0)
    save_checkpoint(folder / "model", model, tokenizer)
    return folder / "model"


@contextmanager
def serving(model: str, more: list[str], log: Path) -> Iterator[tuple[psutil.Process, str]]:
    """``hone serve`` on a free port: its process and its URL."""
    command = [sys.executable, "-m", "hone", "serve", model, "--port", "0", *more]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"Serving .* at (\S+)", line):
                print(line.strip())
                break
        else:
            raise SystemExit(f"The server did not start:\n{log.read_text()}")
        yield psutil.Process(process.pid), found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def state(server: psutil.Process, url: str) -> State:
    """How the server stands."""
    with urlopen(f"{url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {
        name: float(value)
        for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    }
    memory = tuple(each.memory_info().rss for each in [server, *server.children(recursive=True)])
    running = found["num_requests_running"] + found["num_requests_waiting"]
    return State(found["kv_cache_usage_perc"], running, memory)


def at_rest(server: psutil.Process, url: str) -> State:
    """How the server stands when nothing runs any more, or has not stopped running in time."""
    end = time.monotonic() + _REST
    while True:
        found = state(server, url)
        if (not found.used and not found.running) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def vanishing(asks: Iterator[Ask], share: float, seed: int) -> Iterator[Ask]:
    """Of ``share`` of the requests, the client goes away in the middle."""
    chooser = random.Random(seed)
    for ask in asks:
        leaves = chooser.random() < share
        yield replace(ask, leave_after=chooser.randint(1, 20)) if leaves else ask


async def differing(target: Target, measured: Measured, count: int) -> tuple[int, list[str]]:
    """How many answers were asked for again, alone, and what differs."""
    whole = [answer for answer in measured.answers if answer.whole]
    chosen = random.Random(0).sample(whole, min(count, len(whole)))
    found = []
    for answer in chosen:
        text = await text_alone(target, answer.asked)
        if text != answer.text:
            found.append(f"{answer.text[:60]!r} under load is {text[:60]!r} alone")
    return len(chosen), found


def show(name: str, found: State) -> None:
    """One line."""
    memory = " + ".join(f"{size / 1e6:.0f}" for size in found.memory)
    print(
        f"{name}: {found.used:.1%} of the blocks held, {found.running:.0f} sequences, "
        f"memory {memory} MB",
        flush=True,
    )


def show_report(report: Report) -> None:
    """The load's figures."""
    print(
        f"\n{report.sent:,} requests in {report.seconds:.0f} s, {report.most_at_once:,} at once: "
        f"{report.whole:,} whole, {report.refused:,} refused, {report.vanished:,} vanished, "
        f"{sum(report.errors.values()):,} failed\n"
        f"{report.request_rate:.1f} requests/s, {report.output_rate:,.0f} tokens/s; the generator "
        f"took {report.busy:.0%} of a processor"
    )
    for name, spread in (("first token", report.ttft), ("between pieces", report.itl)):
        if spread is not None:
            print(
                f"{name}: p50 {spread.p50:.3f} s, p95 {spread.p95:.3f} s, p99 {spread.p99:.3f} s, "
                f"most {spread.most:.3f} s"
            )
    for kind, count in report.errors.items():
        print(f"{count:,} × {kind}: {report.words[kind]}")
    print(flush=True)


def failures(
    report: Report, before: State, after: State, different: list[str], ttft: float
) -> list[str]:
    """What is not as it must be."""
    found = [f"{count:,} × {kind}" for kind, count in report.errors.items()]
    if not report.whole:
        found.append("no answer came whole")
    found += different
    if after.used or after.running:
        found.append(f"{after.used:.1%} of the blocks and {after.running:.0f} sequences remain")
    if sum(after.memory) > _MEMORY * sum(before.memory) + _NOISE:
        grown = (sum(after.memory) - sum(before.memory)) / 1e6
        found.append(f"memory has grown by {grown:.0f} MB")
    if report.ttft is not None and report.ttft.most > ttft:
        found.append(f"a first token took {report.ttft.most:.1f} s, more than {ttft:g} s")
    return found


def main() -> None:
    """Run, print, check."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("model", nargs="?", help="a checkpoint; random weights without one")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--warm", type=float, default=20.0, help="seconds of a round before")
    parser.add_argument("--lengths", default="32:64", help="tokens of prompt and answer, or mix")
    parser.add_argument("--vanish", type=float, default=0.0, help="share of clients that go away")
    parser.add_argument("--ttft", type=float, default=60.0, help="most seconds to a first token")
    parser.add_argument("--again", type=int, default=50, help="answers to ask for again, alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    given, _, more = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(given.split())
    alike = None
    if options.lengths != "mix":
        prompt, _, answer = options.lengths.partition(":")
        alike = int(prompt), int(answer)

    def load(found: Found, seconds: float, seed: int) -> Measured:
        lengths = Lengths(alike, found.context or 1024)
        asks = vanishing(drawn(lengths, seed, found.words), options.vanish, seed)
        return asyncio.run(
            run(found.target, asks, Load(concurrency=options.streams, seconds=seconds))
        )

    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(write_model(Path(folder)))
        log = Path(folder) / "log"
        with serving(model, more.split(), log) as (server, url):
            address = Address.parse(url, os.environ.get("OPENAI_API_KEY", ""))
            fields = {"temperature": 0.0, "ignore_eos": True}
            found = asyncio.run(explore(address, None, "completions", 600.0, fields))
            before = at_rest(server, url)
            for number in range(_WARM_ROUNDS):
                load(found, options.warm, options.seed + 1 + number)
                memory, before = sum(before.memory), at_rest(server, url)
                if sum(before.memory) <= _SETTLED * memory:
                    break
            show("before", before)
            measured = load(found, options.seconds, options.seed)
            after = at_rest(server, url)
            show("after", after)
            report = summarise(measured)
            show_report(report)
            asked, different = asyncio.run(differing(found.target, measured, options.again))
            print(f"{asked - len(different)} of {asked} answers are the same alone")
        if options.plot:
            draw(measured, report, options.plot, f"{options.streams} streams on hone serve")
        wrong = failures(report, before, after, different, options.ttft)
        if wrong:
            print("\n".join(["", "FAILED:", *wrong]))
            print(f"\nThe server's last words:\n{log.read_text()[-2000:]}")
            sys.exit(1)
    print("All checks hold.")


if __name__ == "__main__":
    main()
