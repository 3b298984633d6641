"""Generation speed: hone and transformers in turn, on the same weights and prompts, in one process.

    python benchmarks/generation.py            # the 221M shape of docs/benchmarks.md
    python benchmarks/generation.py --quick    # a 32M shape and 24 new tokens

Random weights; prompts of 128 random tokens, 32 new tokens each, greedy, at batch 1, 8 and 32.
Every contender computes in the dtype that the processor is fastest at; rounds alternate between
them, and the best of each counts. Decoding excludes the prompt's pass. Prints a table in Markdown,
with the share of the machine's memory bandwidth that decoding at batch 1 reached: the bytes of
all weights, read once per token, over what reading memory gives in the same run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import Machine, measure

import hone
from hone.kernels import preferred_dtype
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.quant import quantize_checkpoint
from hone.text.tokenizer import Tokenizer

PROMPT_TOKENS = 128
VOCABULARY = 32_000
# generate(prompts [B, T], new tokens): runs to the end.
Generate = Callable[[torch.Tensor, int], None]


@dataclass
class Contender:
    """One way to generate, and the best seconds seen: (batch, new tokens) to seconds."""

    name: str
    generate: Generate
    weight_bytes: int
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)

    def run(self, prompts: torch.Tensor, new_tokens: int) -> None:
        """Time one round."""
        start = time.perf_counter()
        self.generate(prompts, new_tokens)
        seconds = time.perf_counter() - start
        key = (len(prompts), new_tokens)
        self.seconds[key] = min(seconds, self.seconds.get(key, seconds))

    def prefill_rate(self, batch: int) -> float:
        """Prompt tokens per second."""
        return batch * PROMPT_TOKENS / self.seconds[batch, 1]

    def decode_rate(self, batch: int, new_tokens: int) -> float:
        """New tokens per second after the prompt's pass."""
        seconds = self.seconds[batch, new_tokens + 1] - self.seconds[batch, 1]
        return batch * new_tokens / seconds


def shape(quick: bool) -> ModelConfig:
    """The model: 221M weights, or 32M."""
    sizes = (512, 1408, 8, 8, 4, 16_384) if quick else (1024, 2816, 16, 16, 8, VOCABULARY)
    hidden, inner, layers, heads, kv_heads, vocabulary = sizes
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def write_models(folder: Path, quick: bool) -> tuple[Path, Path]:
    """A bf16 checkpoint and its int8 form."""
    model = CausalLM(shape(quick), torch.bfloat16)
    model.initialise(seed=0)
    save_checkpoint(folder / "bf16", model, Tokenizer.train(["benchmark"], 300))
    quantize_checkpoint(folder / "bf16", folder / "int8")
    return folder / "bf16", folder / "int8"


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights in memory, shared ones once."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def hone_contender(path: Path, name: str) -> Contender:
    """``lm.generate`` as a user calls it."""
    # The same prompts come in every round, and are to be read in every round.
    lm = hone.load(path, options=hone.EngineOptions(prefix_sharing=False))

    def generate(prompts: torch.Tensor, new_tokens: int) -> None:
        params = hone.SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        results = lm.generate(prompts.tolist(), params)
        assert all(len(result.token_ids) == new_tokens for result in results)

    return Contender(name, generate, weight_bytes(lm.model))


def transformers_contender(path: Path, dtype: torch.dtype) -> Contender:
    """``model.generate`` with its key/value cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def generate(prompts: torch.Tensor, new_tokens: int) -> None:
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert out.shape[1] == prompts.shape[1] + new_tokens

    return Contender(f"transformers {short(dtype)}", generate, weight_bytes(model))


def short(dtype: torch.dtype) -> str:
    """The dtype as it is written in tables."""
    return {"float32": "fp32", "bfloat16": "bf16"}[str(dtype).removeprefix("torch.")]


def table(
    contenders: list[Contender], batches: list[int], new_tokens: int, machine: Machine
) -> str:
    """Rates, and in brackets the ratio to the first contender."""
    head = ["", "weights", f"prefill ×{batches[-1]} tok/s"]
    head += [f"decode ×{batch}" for batch in batches] + ["share of bandwidth ×1"]
    lines = [head, ["---"] * len(head)]
    peer = contenders[0]
    for one in contenders:
        rates = [(one.prefill_rate(batches[-1]), peer.prefill_rate(batches[-1]))]
        rates += [
            (one.decode_rate(b, new_tokens), peer.decode_rate(b, new_tokens)) for b in batches
        ]
        share = one.weight_bytes * one.decode_rate(1, new_tokens) / machine.memory_gbs / 1e9
        cells = [f"{rate:,.0f} ({rate / base:.2f}×)" for rate, base in rates]
        lines.append([one.name, f"{one.weight_bytes / 1e6:.0f} MB", *cells, f"{share:.0%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    new_tokens = 24 if options.quick else 32
    if 1 not in options.batches:
        parser.error("--batches must hold 1, for the share of the bandwidth")
    machine = measure()
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        original, int8 = write_models(Path(folder), options.quick)
        dtype = preferred_dtype()
        contenders = [
            transformers_contender(original, dtype),
            hone_contender(original, f"hone {short(dtype)}"),
            hone_contender(int8, "hone int8"),
        ]
    generator = torch.Generator().manual_seed(0)
    vocabulary = shape(options.quick).vocab_size
    for batch in options.batches:
        prompts = torch.randint(3, vocabulary, (batch, PROMPT_TOKENS), generator=generator)
        for one in contenders:
            one.generate(prompts[:1], 2)  # to warm up
        for _ in range(options.rounds):
            for one in contenders:
                one.run(prompts, 1)
                one.run(prompts, new_tokens + 1)
    print(table(contenders, options.batches, new_tokens, machine))


if __name__ == "__main__":
    main()
