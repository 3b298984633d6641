"""Time to the end of the first training step, from the start of the process.

    HONE_DATA=... python benchmarks/start.py             # twice each: the first start, the second
    HONE_DATA=... python benchmarks/start.py --quick     # hone alone, a tiny model, once: a check

The 17M shape, 8 sequences of 512 tokens for pretraining, an Alpaca file for tuning. Everything
counts: Python, imports, the checkpoint, the data, and of ``hone finetune`` the choice of settings
and the scores and answers before training. The contenders start in turn. hone does not compile a
model in training, so that its first step is like every other; the second step is shown for that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VOCABULARY, ROWS, LENGTH = 8192, 8, 512
STEPS = 2  # the first, and another for comparison
WAITING = 0.02  # seconds between two looks at a run's lines
PEERS = ("transformers", "transformers, compiled", "TRL")
NAMES = ("hone, pretraining", "hone finetune", *PEERS)


def done(loss: float) -> None:
    """A step has ended."""
    print(json.dumps({"loss": loss}), flush=True)


def hone_pretraining(folder: Path, data: Path) -> None:
    """A corpus on the disk, a checkpoint, and hone's loop."""
    from hone.data import Causal, Corpus, text_batches
    from hone.models import load_model
    from hone.train import TrainConfig, train
    from hone.train.resume import Counters

    model = load_model(folder / "start", "float32")
    corpus = Corpus.open(folder / "corpus")
    batches = text_batches(corpus, Causal(), LENGTH, ROWS * LENGTH, seed=0)
    settings = TrainConfig(steps=STEPS + 1, log_every=1)

    def report(counters: Counters) -> None:
        done(counters.loss or 0.0)

    with tempfile.TemporaryDirectory() as out:
        train(model, batches, settings, out, on_step=report)


def transformers_pretraining(folder: Path, data: Path, compiled: bool = False) -> None:
    """A plain loop around transformers' model, as in training.py."""
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).train()
    forward: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = np.fromfile(folder / "corpus" / "ids.bin", dtype=np.uint16).astype(np.int64)
    for step in range(STEPS):
        part = ids[step * ROWS * LENGTH :][: ROWS * LENGTH]
        rows = torch.from_numpy(part).view(ROWS, LENGTH)
        loss = forward(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done(loss.item())


def compiled_pretraining(folder: Path, data: Path) -> None:
    """The same with torch.compile."""
    transformers_pretraining(folder, data, compiled=True)


def trl_tuning(folder: Path, data: Path) -> None:
    """TRL's SFTTrainer on the Alpaca file."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Report(TrainerCallback):
        """Tells of every step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done(0.0)

    rows = [
        {"prompt": f"{row['instruction']}\n{row['input']}\n", "completion": row["output"]}
        for row in json.loads(data.read_text(encoding="utf-8"))
    ]
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=ROWS,
            max_steps=STEPS + 1,
            max_length=1024,
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / "start"),
            callbacks=[Report()],
        ).train()


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "hone, pretraining": hone_pretraining,
    "transformers": transformers_pretraining,
    "transformers, compiled": compiled_pretraining,
    "TRL": trl_tuning,
}


def finetune_command(folder: Path, data: Path, out: Path) -> list[str]:
    """``hone finetune`` with a line in its metrics for each of its first steps."""
    command = "import sys; from hone.cli.app import main; sys.exit(main())"
    asked = ["--steps", "20", "--method", "full", "--out", str(out)]
    start = str(folder / "start")
    return [sys.executable, "-c", command, "finetune", start, "--data", str(data), *asked]


def steps_in(process: subprocess.Popen[str], out: Path) -> Iterator[float]:
    """When each step of ``hone finetune`` was written down, as long as it runs."""
    seen = 0
    while process.poll() is None:
        for file in out.rglob("metrics.jsonl"):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            found = sum(line.endswith("\n") and '"loss"' in line for line in lines)
            for _ in range(found - seen):
                yield time.perf_counter()
            seen = max(found, seen)
        time.sleep(WAITING)


def start(name: str, folder: Path, data: Path) -> list[float]:
    """Seconds from the start of a process to the ends of its first steps."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
        command += ["--file", str(data)]
        if name == "hone finetune":
            command = finetune_command(folder, data, Path(out) / "run")
        errors = Path(out) / "errors"
        with errors.open("w") as file:
            begun = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
            assert process.stdout is not None
            if name == "hone finetune":
                ends: Iterator[float] = steps_in(process, Path(out) / "run")
            else:
                lines = (line for line in process.stdout if line.startswith('{"loss"'))
                ends = (time.perf_counter() for _ in lines)
            times = [end - begun for end, _ in zip(ends, range(STEPS), strict=False)]
            process.kill()  # what comes after does not count
            process.communicate()
        if len(times) < STEPS:
            raise SystemExit(f"{name} stopped early:\n{errors.read_text()[-2000:]}")
    return times


def prepare(folder: Path, data: Path, quick: bool) -> str:
    """Write the checkpoint with a tokenizer, and the corpus; returns the shape in words."""
    import numpy as np

    from hone.data import write_corpus
    from hone.models import CausalLM, ModelConfig, save_checkpoint
    from hone.text.tokenizer import Tokenizer

    rows = json.loads(data.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.train((row["output"] for row in rows), VOCABULARY)
    width, layers = (64, 2) if quick else (384, 8)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = CausalLM(config)
    model.initialise(seed=0)
    save_checkpoint(folder / "start", model, tokenizer)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=100 * ROWS * LENGTH)
    write_corpus(folder / "corpus", [ids], VOCABULARY)
    return f"Llama shape, {config.parameter_count / 1e6:.1f}M"


def print_table(times: dict[str, list[list[float]]]) -> None:
    """A Markdown table."""
    starts = len(next(iter(times.values())))
    heads = [f"start {number + 1}" for number in range(starts)]
    print("| to the end of the first step | " + " | ".join(heads) + " | one more step |")
    print("|---" * (starts + 2) + "|")
    for name, all_times in times.items():
        first = " | ".join(f"{one[0]:.1f} s" for one in all_times)
        print(f"| {name} | {first} | {min(one[1] - one[0] for one in all_times):.1f} s |")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="hone alone, a tiny model, once")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="some of them")
    parser.add_argument("--starts", type=int, default=2, help="of each contender")
    parser.add_argument("--data", default=os.environ.get("HONE_DATA", ""), help="see HONE_DATA")
    for hidden in ("--contender", "--folder", "--file"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        CONTENDERS[options.contender](Path(options.folder), Path(options.file))
        return
    data = Path(options.data) / "instruction_samples" / "alpaca_en_demo.json"
    if not data.is_file():
        parser.error(f"set HONE_DATA (or --data) to a folder that has {data.name}: no {data}")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    starts = 1 if options.quick else options.starts
    names = options.only or [name for name in NAMES if not options.quick or name not in PEERS]
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        shape = prepare(Path(folder), data, options.quick)
        for _ in range(starts):
            for name in names:
                print(f"starting {name} ...", file=sys.stderr, flush=True)
                times[name].append(start(name, Path(folder), data))
    print(f"{shape}, {os.environ.get('OMP_NUM_THREADS') or os.cpu_count()} threads\n")
    print_table(times)


if __name__ == "__main__":
    main()
