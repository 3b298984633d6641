"""Every family: hone and transformers in turn, on the same weights and tokens, in one run.

    python benchmarks/families.py                   # forward, and forward with backward
    python benchmarks/families.py --only bert,t5    # some of them
    python benchmarks/families.py --load            # loading time and peak memory instead

Models of 10 to 40 million weights in float32, 4 sequences of 256 tokens. Freed memory is kept for
both alike. The gradient is that of the family's own task: the next token, 15% of masked tokens, or
an answer to a source. Prints the median seconds of each and how many times faster hone is.
"""

import argparse
import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import measure
from torch import Tensor

from hone.kernels import keep_freed_memory
from hone.models import known_families, load_model

ROWS, LENGTH, VOCABULARY = 4, 256, 8192
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"moe_intermediate_size": 512, "num_experts_per_tok": 2, "num_hidden_layers": 4}
MORE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 512},
    "bloom": {"n_layer": 6, "n_head": 8},
    "gemma2": {"head_dim": 64, "sliding_window": 128},
    "gemma3_text": {"head_dim": 64, "sliding_window": 128},
    "qwen3": {"head_dim": 64},
    "mistral": {"sliding_window": 128},
    "mixtral": {"num_local_experts": 8, "intermediate_size": 512, "num_hidden_layers": 4},
    "qwen2_moe": EXPERTS | {"num_experts": 8, "shared_expert_intermediate_size": 512},
    "qwen3_moe": EXPERTS | {"num_local_experts": 8, "num_experts": 8, "head_dim": 64},
    "mamba": {"num_hidden_layers": 6},
    "mamba2": {"num_heads": 16, "head_dim": 64, "n_groups": 1, "state_size": 64},
    "modernbert": {"local_attention": 128},
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 1408, "num_layers": 4, "num_heads": 8},
    "bart": {
        "d_model": 512,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 1408,
        "decoder_ffn_dim": 1408,
    },
}
CLASSES = {"masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}
Work = Callable[[], object]


def make_theirs(family: str, head: str) -> Any:
    """A random model of transformers."""
    import transformers

    sizes = dict(SIZES)
    if family in ("t5", "bart", "gpt2"):
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            sizes.pop(key)
    if family in ("t5", "bart"):
        sizes.pop("intermediate_size")
        sizes["decoder_start_token_id"] = 0
    if family in ("mamba", "mamba2"):
        sizes.pop("intermediate_size")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(sizes | MORE.get(family, {})))
    model = getattr(transformers, CLASSES.get(head, "AutoModelForCausalLM")).from_config(config)
    return model.float().eval()


def make_work(family: str, head: str, folder: Path) -> dict[str, tuple[Work, Work]]:
    """By mode, hone's work and theirs."""
    theirs = make_theirs(family, head)
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    if head == "masked":
        labels[torch.rand(ids.shape, generator=generator) > 0.15] = -100
    batch = pack(ids, labels, head)
    more = {"decoder_input_ids": ids} if head == "seq2seq" else {}
    options = {"use_cache": False} if takes(theirs, "use_cache") else {}

    def forward(model: Any, options: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return model(ids, **more, **options).logits

    def our_gradient() -> None:
        ours.zero_grad()
        (ours.packed_loss(batch) / int((labels != -100).sum())).backward()

    def their_gradient() -> None:
        theirs.zero_grad()
        theirs(ids, labels=labels, **options).loss.backward()

    difference = (forward(ours, {}) - forward(theirs, options)).abs().max().item()
    if difference > 1e-3:
        raise SystemExit(f"{family}: logits differ by {difference}; nothing to compare.")
    return {
        "forward": (lambda: forward(ours, {}), lambda: forward(theirs, options)),
        "forward+backward": (our_gradient, their_gradient),
    }


def takes(model: Any, name: str) -> bool:
    """Whether their forward pass has a parameter of this name, or takes any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters


def pack(ids: Tensor, labels: Tensor, head: str) -> Any:
    """The batch as hone's losses take it."""
    flat = labels.clone()
    if head == "causal":
        flat[:, :-1], flat[:, -1] = labels[:, 1:], -100
    bounds = torch.arange(ROWS + 1).mul(LENGTH).int()
    inputs = ids
    if head == "seq2seq":
        inputs = torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), dim=1)
    return SimpleNamespace(
        input_ids_N=inputs.flatten(),
        position_ids_N=torch.arange(LENGTH).repeat(ROWS),
        cu_seqlens=bounds,
        max_length=LENGTH,
        labels_N=flat.flatten(),
        source_ids_M=ids.flatten(),
        source_cu_seqlens=bounds,
    )


def race(work: tuple[Work, Work], turns: int) -> tuple[float, float]:
    """Median seconds of each, in turn, after one turn to warm up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for contender, taken in zip(work, seconds, strict=True):
            start = time.perf_counter()
            contender()
            if turn:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def speed(families: list[str], turns: int) -> None:
    """Forward, and forward with backward."""
    from hone.models import find_family

    print("| family | weights | | hone | transformers | times faster |")
    print("|---|---|---|---|---|---|")
    for family in families:
        head = find_family(family).head
        with tempfile.TemporaryDirectory() as folder:
            work = make_work(family, head, Path(folder))
            size = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors")) / 4e6
        for mode, contenders in work.items():
            ours, theirs = race(contenders, turns)
            print(
                f"| {family} | {size:.0f}M | {mode} | {1e3 * ours:.0f} ms | {1e3 * theirs:.0f} ms "
                f"| {theirs / ours:.2f}x |",
                flush=True,
            )


LOADERS = {
    "hone": "from hone.models import load_model; run = lambda: load_model({path!r}, {dtype!r})",
    "transformers": (
        "from transformers import AutoModelForCausalLM as A; "
        "run = lambda: A.from_pretrained({path!r}, dtype={dtype!r})"
    ),
}
MEASURE = r"""
import json, re, time, torch
from pathlib import Path
{loader}
def memory(key):
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
start = time.perf_counter(); model = run(); seconds = time.perf_counter() - start
first = time.perf_counter()
with torch.no_grad():
    model(torch.arange(8)[None])
print(json.dumps([seconds, time.perf_counter() - first, memory('VmHWM') - before]))
"""


def loading(turns: int) -> None:
    """A checkpoint of 220M weights in four shards, stored in float32 and in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SIZES | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    print("| stored | read as | | load | first use | peak memory above import | weights |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for stored, wanted in (
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
            ("bfloat16", "float32"),
            ("float32", "bfloat16"),
        ):
            path = str(Path(folder) / stored)
            model.to(getattr(torch, stored)).save_pretrained(path, max_shard_size="200MB")
            weights = model.num_parameters() * (4 if wanted == "float32" else 2) / 2**20
            found: dict[str, list[list[float]]] = {name: [] for name in LOADERS}
            for _ in range(turns):
                for name, loader in LOADERS.items():
                    code = MEASURE.format(loader=loader.format(path=path, dtype=wanted))
                    done = subprocess.run(
                        [sys.executable, "-c", code], capture_output=True, text=True, check=True
                    )
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
            for name, rows in found.items():
                seconds, first, peak = (
                    statistics.median(column) for column in zip(*rows, strict=True)
                )
                print(
                    f"| {stored} | {wanted} | {name} | {seconds:.2f} s | {first:.2f} s "
                    f"| {peak:,.0f} MiB | {weights:,.0f} MiB |",
                    flush=True,
                )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--load", action="store_true", help="loading instead of computing")
    parser.add_argument("--turns", type=int, default=7, help="turns that count")
    options = parser.parse_args()
    print(measure().describe() + "\n")
    if options.load:
        loading(options.turns)
        return
    keep_freed_memory()
    every = [family for family in known_families() if family != "hone"]
    speed(options.only.split(",") if options.only else every, options.turns)


if __name__ == "__main__":
    main()
