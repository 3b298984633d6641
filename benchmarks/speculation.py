"""What guessing tokens brings: without, by look-up, by a smaller model, by Medusa heads.

    python benchmarks/speculation.py                # trains a model, its draft and heads: minutes
    python benchmarks/speculation.py --quick        # smaller ones
    python benchmarks/speculation.py --folder DIR   # keeps them there, for the next time

The task is Text2SQL in small: a prompt shows the columns of two tables and asks a question, and the
answer is SQL that repeats names of the prompt. All three are trained on such text; prompts are new
ones. Then the same prompts with tokens drawn at a high temperature, which nobody can guess: there
guessing should turn itself off, and cost next to nothing. Outputs are checked to be the same in all
ways. Rounds alternate, and the best of each counts. Prints tables in Markdown.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import measure

from hone.core.seeds import rng
from hone.data import PackedBatches, completion_sample
from hone.engine.engine import Engine
from hone.engine.lm import load
from hone.engine.options import EngineOptions
from hone.engine.params import SamplingParams
from hone.engine.request import Request
from hone.engine.speculation import Speculation, load_speculation
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.recipes.medusa import MedusaOptions, MedusaRun
from hone.text.tokenizer import Tokenizer
from hone.train import TrainConfig, train

TABLES = ["customers", "order_items", "products", "고객", "주문", "shipments", "직원", "invoices"]
COLUMNS = [
    *("customer_id", "unit_price", "created_at", "city", "quantity", "이름", "가격", "도시"),
    *("status_code", "discount", "부서_번호", "입사일", "email_address", "total_amount"),
]
VALUES = ["'서울'", "'부산'", "'paid'", "'open'", "100", "2500", "'2024-01-01'"]
WAYS = ["none", "ngram", "draft", "medusa"]


def question(random) -> dict[str, str]:
    """A prompt and its SQL."""
    tables = random.sample(TABLES, 2)
    columns = {table: random.sample(COLUMNS, random.randint(3, 5)) for table in tables}
    schema = "\n".join(f"CREATE TABLE {t} ({', '.join(columns[t])});" for t in tables)
    table = random.choice(tables)
    shown, other = random.sample(columns[table], 2)
    value = random.choice(VALUES)
    asked, sql = random.choice(
        [
            (
                f"List {shown} of {table} where {other} is {value}.",
                f"SELECT {shown} FROM {table} WHERE {other} = {value} ORDER BY {shown} LIMIT 10;",
            ),
            (
                f"{table}에서 {other}별 {shown} 합계는?",
                f"SELECT {other}, SUM({shown}) FROM {table} GROUP BY {other} ORDER BY {other};",
            ),
            (
                f"How many {table} have {shown} above {value}?",
                f"SELECT COUNT(*) FROM {table} WHERE {shown} > {value} AND {other} IS NOT NULL;",
            ),
        ]
    )
    return {"prompt": f"{schema}\n-- {asked}\n", "completion": sql}


def questions(count: int, name: str) -> list[dict[str, str]]:
    """So many prompts with their SQL."""
    random = rng(0, name)
    return [question(random) for _ in range(count)]


def shape(tokenizer: Tokenizer, hidden: int, layers: int) -> ModelConfig:
    """A decoder."""
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def make_models(folder: Path, quick: bool) -> None:
    """Train the model, its draft and its heads, those that are not there yet."""
    rows = questions(1500 if quick else 4000, "train")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tokenizer = Tokenizer.train((row["prompt"] + row["completion"] for row in rows), 700)
    samples = [
        completion_sample(
            tokenizer.encode(row["prompt"], add_special_tokens=True),
            [*tokenizer.encode(row["completion"]), tokenizer.eos_id],
        )
        for row in rows
    ]
    sizes = {"model": (128, 3) if quick else (320, 6), "draft": (64, 1)}
    for name, (hidden, layers) in sizes.items():
        if (folder / name).is_dir():
            continue
        model = CausalLM(shape(tokenizer, hidden, layers))
        model.initialise(seed=0)
        settings = TrainConfig(steps=150 if quick else 400, warmup_steps=10)
        train(model, PackedBatches(samples, 1500, 0), settings, folder / f"train-{name}")
        save_checkpoint(folder / name, model, tokenizer)
    options = MedusaOptions(
        model=str(folder / "model"),
        data=str(data),
        steps=100 if quick else 200,
        tokens_per_step=1500,
        learning_rate=3e-3,
    )
    MedusaRun(options, folder / "heads").run()


@dataclass
class Contender:
    """One way to guess, and the best round so far."""

    name: str
    speculation: Speculation | None
    seconds: float = float("inf")
    outputs: list[list[int]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    guessing: float = 0.0


class Bench:
    """The model with each way of guessing."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lm = load(folder / "model")
        paths = {"draft": f"draft:{folder / 'draft'}", "medusa": f"medusa:{folder / 'heads'}"}
        self.names = {"none": None, "ngram": "ngram"} | paths
        self.prompts = [
            self.lm.tokenizer.encode(row["prompt"], add_special_tokens=True)
            for row in questions(96, "asked")
        ]

    def contenders(self, batch: int) -> list[Contender]:
        """One of each, which have learnt nothing."""
        found = []
        for way in WAYS:
            options = EngineOptions(speculation=self.names[way], max_running=batch)
            speculation = load_speculation(self.lm.model, self.lm.tokenizer, options)
            found.append(Contender(way, speculation))
        return found

    def round(self, one: Contender, batch: int, params: list[SamplingParams]) -> None:
        """All prompts once."""
        options = EngineOptions(max_running=batch, prefix_sharing=False)
        engine = Engine(
            self.lm.model,
            self.lm.tokenizer,
            self.lm.end_ids,
            options=options,
            speculation=one.speculation,
            clock=self.clock,
        )
        outputs: dict[str, list[int]] = {}
        for number, (prompt, each) in enumerate(zip(self.prompts, params, strict=False)):
            engine.add(Request(str(number), tuple(prompt), each))
        before = engine.stats()
        guessing = 0.0
        if one.speculation is not None:
            propose = type(one.speculation).propose

            def timed(sequences, limits, speculation=one.speculation):
                nonlocal guessing
                begun = self.clock()
                drafts = propose(speculation, sequences, limits)
                guessing += self.clock() - begun
                return drafts

            one.speculation.propose = timed  # type: ignore[method-assign]
        start = self.clock()
        while engine.busy:
            for delta in engine.step():
                outputs.setdefault(delta.request, []).extend(delta.tokens)
        seconds, stats = self.clock() - start, engine.stats()
        if seconds < one.seconds:
            one.seconds, one.steps, one.guessing = seconds, stats.steps, guessing
            one.drafted = stats.drafted - before.drafted
            one.accepted = stats.accepted - before.accepted
        one.outputs = [outputs[key] for key in sorted(outputs)]

    def table(self, batch: int, rounds: int, count: int, temperature: float) -> str:
        """Measure all ways on ``count`` prompts."""
        params = [
            SamplingParams(
                max_tokens=64 if not temperature else 32,
                temperature=temperature,
                seed=seed,
                ignore_eos=temperature > 0,
            )
            for seed in range(count)
        ]
        contenders = self.contenders(batch)
        for _ in range(rounds):
            for one in contenders:
                self.round(one, batch, params)
        plain = contenders[0]
        head = [
            "guesses",
            "tok/s",
            "drafted per token",
            "accepted",
            "tokens per pass",
            "time to guess",
        ]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for one in contenders:
            tokens = sum(map(len, one.outputs))
            same = sum(a == b for a, b in zip(one.outputs, plain.outputs, strict=True))
            assert same > 0.95 * count, "outputs differ by more than rounding can explain"
            lines.append(
                [
                    one.name,
                    f"{tokens / one.seconds:,.0f} ({plain.seconds / one.seconds:.2f}×)",
                    f"{one.drafted / tokens:.2f}",
                    f"{one.accepted / one.drafted:.0%}" if one.drafted else "-",
                    f"{tokens / one.steps:.2f}",
                    f"{one.guessing / one.seconds:.1%}",
                ]
            )
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="smaller models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's, where others use it too"
    )
    parser.add_argument("--folder", type=Path, help="where the models are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_models(folder, options.quick)
        print(measure().describe(), flush=True)
        bench = Bench(folder, time.process_time if options.cpu_time else time.perf_counter)
        size = bench.lm.config.parameter_count / 1e6
        for batch in options.batches:
            for what, temperature in (("SQL, greedy", 0.0), ("drawn at temperature 3", 3.0)):
                print(f"\n{size:.1f}M weights, batch {batch}, {what}\n", flush=True)
                print(bench.table(batch, options.rounds, options.prompts, temperature), flush=True)


if __name__ == "__main__":
    main()
