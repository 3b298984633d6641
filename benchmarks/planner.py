"""Predicted and measured memory: the peak of one training step, over architectures and methods.

    python benchmarks/planner.py            # every case, some minutes
    python benchmarks/planner.py llama      # those with this in their name

A step is all of it: the model and its optimizer are made, forward and backward pass, clipping and
update. Measured is what the allocator of tensors counts; predicted is ``hone.plan`` from the
configuration alone. Not counted are the scratch memory of matrix libraries and Python's own.
"""

import argparse
import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hone.adapters import LoraConfig, add_adapter
from hone.models import ModelConfig, make_model, read_config
from hone.plan import Lora, TrainJob, find_device, plan
from hone.plan.show import size
from hone.quant import quantize_nf4_model
from hone.train import TrainConfig
from hone.train.batches import TensorBatch
from hone.train.memory import measure_peak
from hone.train.optimizers import Optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
EVEN, UNEVEN = (256,) * 4, (300, 250, 200, 100, 90, 80, 40)
GPT2 = {"n_embd": 256, "n_layer": 4, "n_head": 8, "vocab_size": 4000, "n_positions": 512}
T5 = {"vocab_size": 4000, "d_model": 256, "d_ff": 704, "num_layers": 4, "num_heads": 8, "d_kv": 32}
BART = {"vocab_size": 4000, "d_model": 256, "encoder_ffn_dim": 704, "decoder_ffn_dim": 704}
BART |= {f"{side}_layers": 4 for side in ("encoder", "decoder")}
BART |= {f"{side}_attention_heads": 8 for side in ("encoder", "decoder")}
MAMBA = {"vocab_size": 4000, "hidden_size": 256, "num_hidden_layers": 4, "state_size": 16}
MAMBA2 = MAMBA | {"state_size": 64, "num_heads": 8, "head_dim": 64, "n_groups": 1}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 176}


@dataclass(frozen=True)
class Case:
    """A model, and a job to train it.

    Attributes:
        name: for the table.
        values: of ``config.json``.
        job: what is planned and done.
    """

    name: str
    values: Mapping[str, Any]
    job: TrainJob = field(default_factory=lambda: TrainJob(lengths=EVEN, precision="fp32"))

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return read_config(self.values)


def job(lengths: tuple[int, ...] = EVEN, **settings: Any) -> TrainJob:
    """A job in float32, unless told otherwise."""
    return TrainJob(lengths=lengths, **({"precision": "fp32"} | settings))


def of(family: str, values: Mapping[str, Any] = SIZES, **more: Any) -> dict[str, Any]:
    """The content of a ``config.json``."""
    return {"model_type": family, **values, **more}


WIDE = {"hidden_size": 512, "intermediate_size": 1408}
CASES = (
    Case("llama", of("llama")),
    Case("llama, tied", of("llama", tie_word_embeddings=True)),
    Case("llama, uneven lengths", of("llama"), job(UNEVEN)),
    Case("llama, short texts", of("llama"), job((64,) * 16)),
    Case("llama, answers only", of("llama"), job(UNEVEN, trained=300)),
    Case("llama, 2,048 tokens", of("llama"), job((2048,))),
    Case("llama, wide", of("llama", **WIDE)),
    Case("llama, blocks", of("llama"), job(activation_checkpointing="blocks")),
    Case(
        "llama, every 2 blocks",
        of("llama"),
        job(activation_checkpointing="blocks", checkpointed_blocks=2),
    ),
    Case("llama, selective", of("llama"), job(activation_checkpointing="selective")),
    Case("llama, adamw_8bit", of("llama", **WIDE), job((32,), optimizer="adamw_8bit")),
    Case("llama, adafactor", of("llama", **WIDE), job((32,), optimizer="adafactor")),
    Case("llama, muon", of("llama", **WIDE), job((32,), optimizer="muon")),
    Case("llama, mean of weights", of("llama"), job(ema=0.99)),
    Case("llama, bf16", of("llama"), job((64,) * 4, precision="bf16")),
    Case("llama, LoRA", of("llama", **WIDE), job(method="lora")),
    Case(
        "llama, LoRA of two",
        of("llama"),
        job(method="lora", lora=Lora(targets=("q_proj", "v_proj"))),
    ),
    Case("llama, QLoRA", of("llama", **WIDE), job(method="qlora")),
    Case(
        "llama, QLoRA, blocks",
        of("llama", **WIDE),
        job(method="qlora", activation_checkpointing="blocks"),
    ),
    Case("gpt2", of("gpt2", GPT2)),
    Case("gpt2, LoRA", of("gpt2", GPT2), job(method="lora")),
    Case("gpt2, selective", of("gpt2", GPT2), job(activation_checkpointing="selective")),
    Case("gpt_neox", of("gpt_neox")),
    Case("qwen3", of("qwen3", head_dim=32)),
    Case("mistral, window of 100", of("mistral", sliding_window=100)),
    Case("gemma2", of("gemma2", head_dim=32)),
    Case("bloom", of("bloom", {"vocab_size": 4000, "hidden_size": 256, "n_layer": 4, "n_head": 8})),
    Case("bert, masked", of("bert"), job(trained=154)),
    Case("bert, masked, uneven", of("bert"), job(UNEVEN, trained=154)),
    Case("bert, classes of texts", of("bert", architectures=["BertForSequenceClassification"])),
    Case(
        "bert, classes of tokens",
        of("bert", architectures=["BertForTokenClassification"]),
        job(UNEVEN, trained=500),
    ),
    Case(
        "bert, pairs",
        of("bert", architectures=["BertModel"]),
        job((128,) * 4, source_lengths=(100,) * 4),
    ),
    Case("llama, classes of texts", of("llama", architectures=["LlamaForSequenceClassification"])),
    Case("modernbert, masked", of("modernbert"), job(trained=154)),
    Case("mixtral", of("mixtral", num_local_experts=4, num_experts_per_tok=2)),
    Case("qwen2_moe", of("qwen2_moe", **MOE, shared_expert_intermediate_size=352)),
    Case(
        "qwen2_moe, blocks",
        of("qwen2_moe", **MOE, shared_expert_intermediate_size=352),
        job(activation_checkpointing="blocks"),
    ),
    Case("mamba", of("mamba", MAMBA)),
    Case("mamba, blocks", of("mamba", MAMBA), job(activation_checkpointing="blocks")),
    Case("mamba, selective", of("mamba", MAMBA), job(activation_checkpointing="selective")),
    Case("mamba2", of("mamba2", MAMBA2)),
    Case("t5", of("t5", T5, tie_word_embeddings=False), job((128,) * 4, source_lengths=EVEN)),
    Case("t5, LoRA", of("t5", T5), job((128,) * 4, source_lengths=EVEN, method="lora")),
    Case("bart", of("bart", BART), job((128,) * 4, source_lengths=EVEN)),
    Case(
        "bart, uneven, blocks",
        of("bart", BART),
        job(UNEVEN, source_lengths=UNEVEN[::-1], activation_checkpointing="blocks"),
    ),
)


def batch_of(config: ModelConfig, asked: TrainJob) -> TensorBatch:
    """Random tokens in the lengths of the job."""
    generator = torch.Generator().manual_seed(0)

    def tokens(lengths: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(0, config.vocab_size, (sum(lengths),), generator=generator)

    targets = {
        "classification": torch.zeros(len(asked.lengths), dtype=torch.int64),
        "embedding": torch.zeros(len(asked.lengths)),
    }
    labels = tokens(asked.lengths)
    if config.head == "token-classification":
        labels %= len(config.labels)
    trained = asked.trained or len(labels)
    labels[torch.randperm(len(labels), generator=generator)[trained:]] = -100
    sources = asked.source_lengths
    return TensorBatch(
        input_ids_N=tokens(asked.lengths),
        position_ids_N=torch.cat([torch.arange(length) for length in asked.lengths]),
        cu_seqlens=torch.tensor([0, *asked.lengths]).cumsum(0).int(),
        max_length=max(asked.lengths),
        labels_N=labels,
        n_trained=trained,
        source_ids_M=tokens(sources) if sources else None,
        source_cu_seqlens=torch.tensor([0, *sources]).cumsum(0).int() if sources else None,
        targets_B=targets.get(config.head),
    )


def measured(case: Case) -> int:
    """Most bytes of tensors while one whole step is taken."""
    config, asked = case.config, case.job
    settings = TrainConfig(steps=1, optimizer=asked.optimizer, ema=asked.ema)

    def step() -> None:
        model = make_model(config)
        model.initialise(0)
        if asked.method == "qlora":
            quantize_nf4_model(model)
        if asked.method != "full":
            targets = asked.lora.targets
            wanted = "all-linear" if "all-linear" in targets else list(targets)
            add_adapter(model, LoraConfig(r=asked.lora.rank, targets=wanted))
        model.set_activation_checkpointing(
            asked.activation_checkpointing, asked.checkpointed_blocks
        )
        optimizer = Optimizer(model, settings, DTYPES[asked.precision])
        model.adjoin_weights()
        model.train()
        batch = batch_of(config, asked)
        optimizer.clear_gradients()
        (model.packed_loss(batch) / batch.n_trained).backward()
        optimizer.collect_gradients()
        optimizer.clip_gradients()
        optimizer.step(1.0, 0)

    peak = measure_peak(step).bytes
    gc.collect()
    return peak


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="only cases with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, errors = find_device("cpu"), []
    print("| job | predicted | measured | error |")
    print("|---|---:|---:|---:|")
    for case in CASES:
        if options.name not in case.name:
            continue
        predicted, found = plan(case.config, case.job, device).peak, measured(case)
        errors.append(predicted / found - 1)
        cells = (case.name, size(predicted), size(found), f"{errors[-1]:+.1%}")
        print(f"| {' | '.join(cells)} |", flush=True)
    if errors:
        print(f"\nThe largest error of {len(errors)} jobs is {max(map(abs, errors)):.1%}.")


if __name__ == "__main__":
    main()
