"""What choosing tokens costs beside the argmax of a step, in one process.

    python benchmarks/sampling.py                     # 32 rows of 32,000 tokens
    python benchmarks/sampling.py --rows 64 --vocabulary 151936

Every kind of request is given to the sampler alone, on scores that fall off by rank as those of a
language model do (Zipf, exponent 1.5). Prints the least time of a step in milliseconds, as other
load on the machine only adds to it, that of ``argmax`` alone, and that of transformers' logits
processors and ``multinomial`` for the same parameters.
"""

import argparse
import time
from collections.abc import Callable

import torch

from hone.engine.params import SamplingParams
from hone.engine.sampler import Place, Sampler

KINDS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "repetition 1.1": {"repetition_penalty": 1.1},
    "log-probabilities, 5": {"logprobs": 5},
}


def least(step: Callable[[], object], times: int) -> float:
    """Milliseconds of a step."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return min(taken) * 1e3


def peer(values: dict[str, float], logits: torch.Tensor, ids: torch.Tensor) -> Callable[[], object]:
    """A step of transformers, as ``generate`` makes it."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    kinds = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    steps = LogitsProcessorList(
        kind(values[name]) for name, kind in kinds.items() if name in values
    )

    def step() -> object:
        scores = steps(ids, logits.to(copy=True, dtype=torch.float32))
        if "logprobs" in values:
            scores.log_softmax(-1).topk(int(values["logprobs"]))
        if "temperature" not in values:
            return scores.argmax(-1).tolist()
        return torch.multinomial(scores.softmax(-1), 1).squeeze(1).tolist()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--times", type=int, default=50)
    chosen = parser.parse_args()
    rows, vocabulary = chosen.rows, chosen.vocabulary
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(rows, vocabulary, generator=generator).argsort(-1) + 1
    logits = -1.5 * ranks.log()
    prompt = torch.randint(vocabulary, (rows, 500), generator=generator)
    print(f"{rows} rows of {vocabulary:,} tokens, {torch.get_num_threads()} threads; ms per step")
    print(f"{'argmax alone':24}{least(lambda: logits.argmax(-1).tolist(), chosen.times):8.2f}")
    print(f"{'':24}{'hone':>8}{'transformers':>14}")
    for name, values in KINDS.items():
        sampler = Sampler(vocabulary)
        keys = [
            sampler.open(SamplingParams(seed=row, **values), prompt[row].tolist(), (), 10**6)
            for row in range(rows)
        ]
        scores = logits.clone()

        def step(
            sampler: Sampler = sampler, keys: list[int] = keys, x: torch.Tensor = scores
        ) -> None:
            x.copy_(logits)
            found = sampler(x, [Place(key, 7) for key in keys])
            for key, token in zip(keys, found.ids, strict=True):
                sampler.commit(key, [token])

        own = least(step, chosen.times)
        print(f"{name:24}{own:8.2f}{least(peer(values, logits, prompt), chosen.times):14.2f}")


if __name__ == "__main__":
    main()
