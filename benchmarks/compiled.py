"""What compiled blocks bring to a decode step, and what they cost at the start.

python benchmarks/compiled.py [--sizes demo small large] [--batches 1 8 32]

Each size runs in two processes of its own, one after the other, with the same empty folder for
compiled code: the first start compiles, the second one finds it. Times are of this process's own
threads, so that a busy machine disturbs them little; plain and compiled steps are taken in turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from os import environ

import torch

from hone.engine.compiled import CompiledDecoder
from hone.engine.paged import PagedCache, Row
from hone.models import CausalLM, ModelConfig

# The demo's model, the 17M shape and the 221M shape of the other benchmarks.
SIZES = {
    "demo": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "large": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
}
_HELD, _BLOCK = 128, 16


def measure(size: str, batches: list[int], turns: int) -> dict[str, object]:
    """Seconds of one start, and milliseconds of plain and compiled steps by batch."""
    config = ModelConfig(**SIZES[size], max_position_embeddings=512, tie_word_embeddings=True)
    model = CausalLM(config, torch.float32)
    model.initialise(seed=1)
    model.eval()
    each = _HELD // _BLOCK + 1
    cache = PagedCache(config, max(batches) * each + 1, _BLOCK, torch.float32, exact=False)
    start, before = time.perf_counter(), _processor_seconds()
    decoder = CompiledDecoder(model.decoder, cache, batches)
    seconds = time.perf_counter() - start
    used = _processor_seconds() - before
    decoder.choose(measured=False)
    steps = {}
    for rows in batches:
        passes = [
            Row(list(range(1 + row * each, 1 + (row + 1) * each)), _HELD, 1) for row in range(rows)
        ]
        ids_N = torch.randint(0, config.vocab_size, (rows,))
        times: tuple[list[float], list[float]] = ([], [])
        with torch.inference_mode():
            for _ in range(turns):
                for compiled, seen in enumerate(times):
                    begun = time.process_time()
                    cache.begin(passes)
                    if compiled:
                        hidden_NE = decoder(ids_N, cache.positions())
                    else:
                        hidden_NE = model.decoder(ids_N, cache.positions(), cache)
                    model.logits(hidden_NE)
                    seen.append((time.process_time() - begun) * 1e3)
        steps[rows] = [(min(seen), statistics.median(seen)) for seen in times]
    return {"seconds": seconds, "processor": used, "steps": steps}


def _processor_seconds() -> float:
    """Of this process and of the C++ compilers that it called."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=0, help="0 is what suits the size")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        (size,) = arguments.sizes
        print(json.dumps(measure(size, arguments.batches, arguments.turns)))
        return
    print("| size | batch | plain, ms | compiled, ms | gain (least) | gain (median) |")
    print("|---|---|---|---|---|---|")
    starts = []
    for size in arguments.sizes:
        turns = arguments.turns or {"demo": 200, "small": 60, "large": 12}[size]
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for number in (turns, 1):
                command = [sys.executable, __file__, "--inner", "--sizes", size, "--turns"]
                command += [str(number), "--batches", *map(str, arguments.batches)]
                places = environ | {"TORCHINDUCTOR_CACHE_DIR": folder}
                done = subprocess.run(command, env=places, stdout=subprocess.PIPE, check=True)
                found.append(json.loads(done.stdout))
        for rows, ((plain, plain_m), (compiled, compiled_m)) in found[0]["steps"].items():
            gains = f"{plain / compiled:.2f}× | {plain_m / compiled_m:.2f}×"
            print(f"| {size} | {rows} | {plain:.2f} | {compiled:.2f} | {gains} |", flush=True)
        starts.append((size, found))
    print("\n| size | first start, s (processor) | second start, s (processor) |\n|---|---|---|")
    for size, found in starts:
        cells = [f"{one['seconds']:.1f} ({one['processor']:.1f})" for one in found]
        print(f"| {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
