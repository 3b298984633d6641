"""What a grammar costs per token: python benchmarks/grammar.py [TOKENIZER_DIRECTORY]

Masks are computed along random walks with a 32,000-token vocabulary, for one output and for 32, and
set against a decoding step of the 221M shape on two threads (its time is given with --step-1 and
--step-32, in milliseconds; the defaults are the bf16 targets of docs/benchmarks.md).
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from hone.engine.grammar import Grammars, Matcher
from hone.engine.params import Grammar
from hone.sql import SqlGrammar, read_schema
from hone.sql.sample import SAMPLE_GLOSSARY, write_sample_database
from hone.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["서울", "부산", "대구"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "age", "city", "tags"],
    "additionalProperties": False,
}


def step_seconds(grammars: Grammars, grammar: Grammar, rows: int, steps: int) -> list[float]:
    """The seconds of processor time that masks and acceptance take, by step of ``rows`` outputs."""
    draw = random.Random(0)
    matchers: list[Matcher] = [grammars.matcher(grammar) for _ in range(rows)]
    mask_RW = np.zeros((rows, grammars.words), np.int32)
    seconds = []
    for _ in range(steps):
        start = time.thread_time()
        grammars.fill(matchers, mask_RW)
        spent = time.thread_time() - start
        bits_RV = np.unpackbits(mask_RW.view(np.uint8), axis=1, bitorder="little")
        tokens = [int(draw.choice(np.flatnonzero(bits_V))) for bits_V in bits_RV]
        start = time.thread_time()
        for matcher, token in zip(matchers, tokens, strict=True):
            matcher.accept(token)
        seconds.append(spent + time.thread_time() - start)
        matchers = [grammars.matcher(grammar) if one.ended else one for one in matchers]
    return seconds


def main() -> None:
    """Print one line per grammar and number of outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-1", type=float, default=40.0, help="ms of a step of one output")
    parser.add_argument("--step-32", type=float, default=32 / 490 * 1e3, help="ms of 32 outputs")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(options.tokenizer)
    grammars = Grammars(tokenizer, [tokenizer.eos_id or 0])
    with tempfile.TemporaryDirectory() as folder:
        path = write_sample_database(Path(folder) / "shop.sqlite")
        sql = SqlGrammar(read_schema(path, SAMPLE_GLOSSARY))(2, (1,))
    cases = {
        "json schema": Grammar("json", json.dumps(SCHEMA)),
        "any object": Grammar("json", '{"type": "object"}'),
        "regex": Grammar("regex", r"[A-Z][a-z]{2,20} \d{4}-\d\d-\d\d .{0,100}"),
        "choice of 500": Grammar("choice", json.dumps([f"{n * 7919}번" for n in range(500)])),
        "sql of 9 tables": Grammar("lark", sql),
    }
    print(f"{len(tokenizer):,} tokens; ms per step, mean / median / p99; share of a decoding step")
    for name, grammar in cases.items():
        start = time.thread_time()
        grammars.compile(grammar)
        compiling = time.thread_time() - start
        for rows, step in ((1, options.step_1), (32, options.step_32)):
            spent = [1e3 * value for value in step_seconds(grammars, grammar, rows, options.steps)]
            p99 = sorted(spent)[int(0.99 * len(spent))]
            mean, median = statistics.mean(spent), statistics.median(spent)
            print(
                f"{name:16} x{rows:<3} compile {compiling:.2f} s  {mean:7.3f} / {median:7.3f} / "
                f"{p99:7.3f}  {mean / step:6.1%}"
            )


if __name__ == "__main__":
    main()
