"""Batching policies: what static, dynamic and continuous batching waste on the same requests.

    python benchmarks/batching.py                       # random weights, 13M
    python benchmarks/batching.py MODEL --rate 8        # a checkpoint of yours
    python benchmarks/batching.py --picture batching.png

The same requests come at the same moments (a Poisson process) under every policy: prompts of 8 to
64 tokens and outputs of 4 to 96, most of them short. Without --rate they come at 0.8 times what
continuous batching can do, measured first. Prints what each policy wastes, its throughput and its
waiting times, with the ratio to static batching, and draws every place of the batch over time.

Waste is the time in which a place of the batch computes nothing although a request waits. No policy
computes for requests that have ended; a server that pads its batches to the end wastes that too.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import hone
from hone.engine.engine import Engine
from hone.engine.options import EngineOptions
from hone.engine.request import Request
from hone.engine.timeline import Figures, Timeline, draw
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

POLICIES = ("static", "dynamic", "continuous")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes, in seconds."""

    at: float
    request: Request


def write_model(folder: Path) -> Path:
    """A small checkpoint of random weights."""
    config = ModelConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=0)
    save_checkpoint(folder / "model", model, Tokenizer.train(["benchmark"], 300))
    return folder / "model"


def workload(count: int, rate: float, vocabulary: int, seed: int) -> list[Arrival]:
    """Requests of a Poisson process."""
    chooser = random.Random(seed)
    now, found = 0.0, []
    for number in range(count):
        now += chooser.expovariate(rate)
        prompt = tuple(chooser.randrange(3, vocabulary) for _ in range(chooser.randint(8, 64)))
        # Squared, so that most outputs are short and a few hold a static batch up.
        most = 4 + round(92 * chooser.random() ** 2)
        params = hone.SamplingParams(max_tokens=most, ignore_eos=True)
        found.append(Arrival(now, Request(str(number), prompt, params)))
    return found


def run(
    lm: hone.LM, policy: str, places: int, wait: float, arrivals: Sequence[Arrival]
) -> Timeline:
    """Let an engine with ``policy`` serve the arrivals as they come."""
    options = EngineOptions(max_running=places, policy=policy, wait_s=wait)  # type: ignore[arg-type]
    engine = Engine(lm.model, lm.tokenizer, lm.end_ids, options=options)
    timeline = Timeline(places)
    engine.observer = timeline.on_step
    begun, waiting = time.monotonic(), list(reversed(arrivals))
    while waiting or engine.busy:
        now = time.monotonic() - begun
        while waiting and waiting[-1].at <= now:
            coming = waiting.pop()
            engine.add(coming.request)
            timeline.arrive(coming.request.id, begun + coming.at)
        if engine.busy and not engine.delay():
            engine.step()
            continue
        pauses = [engine.delay()] if engine.busy else []
        pauses += [waiting[-1].at - now] if waiting else []
        time.sleep(max(0.0, min(pauses)))
    return timeline


def table(found: dict[str, Figures]) -> str:
    """In Markdown, with the ratio to the first policy."""
    head = ["policy", "waste", "of use", "tokens/s", "first token, mean", "95%", "last token, mean"]
    lines = [head, ["---"] * len(head)]
    base = next(iter(found.values()))
    for name, one in found.items():
        cells = [f"{one.waste:.0%}", f"{one.useful:.0%}", _ratio(one.rate, base.rate, ",.0f")]
        for value, other in (
            (one.ttft, base.ttft),
            (one.ttft_p95, base.ttft_p95),
            (one.latency, base.latency),
        ):
            cells.append(_ratio(value * 1e3, other * 1e3, ",.0f", " ms"))
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(value: float, base: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit} ({value / base:.2f}×)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("model", nargs="?", help="a checkpoint; random weights without one")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--places", type=int, default=8, help="rows of a batch")
    parser.add_argument("--wait", type=float, default=0.25, help="seconds that dynamic waits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--picture", type=Path, default=Path("batching.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        lm = hone.load(options.model or write_model(Path(folder)), exact=False)
    vocabulary = lm.config.vocab_size
    at_once = workload(options.requests, 1e9, vocabulary, options.seed + 1)
    seconds = run(lm, "continuous", options.places, options.wait, at_once).figures().seconds
    rate = options.rate or 0.8 * options.requests / seconds
    arrivals = workload(options.requests, rate, vocabulary, options.seed)
    timelines = {
        policy: run(lm, policy, options.places, options.wait, arrivals) for policy in POLICIES
    }
    print(
        f"{options.requests} requests, {rate:.2f} per second, {options.places} places, "
        f"dynamic batches wait {options.wait:g} s; {options.threads} threads\n"
    )
    print(table({policy: timeline.figures() for policy, timeline in timelines.items()}))
    title = f"The same {options.requests} requests (▾) under three policies of batching"
    draw(timelines, options.picture, title)
    print(f"\n{options.picture}")


if __name__ == "__main__":
    main()
