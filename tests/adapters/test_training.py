"""The training loop trains an adapter and nothing else."""

import pytest
import torch

from hone.adapters import LoraConfig, add_adapter, load_adapter, save_adapter, set_adapter
from hone.data import PackedBatches, completion_sample
from hone.models import CausalLM, ModelConfig
from hone.quant import quantize_nf4_model
from hone.train import TrainConfig, train

SENTENCE = [3, 9, 4, 11, 5, 13, 6, 15, 7, 17]


def make_model():
    model = CausalLM(ModelConfig(20, 32, 48, 2, 4, 2, max_position_embeddings=32))
    model.initialise(seed=1)
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_loss_falls_and_the_base_stays(tmp_path, precision, dora):
    model = make_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    add_adapter(model, LoraConfig(r=4, alpha=16, dora=dora, dropout=0.05, modules_to_save=["norm"]))
    samples = [completion_sample(SENTENCE[i : i + 1], SENTENCE[i + 1 :]) for i in range(4)]
    config = TrainConfig(
        steps=30,
        optimizer="adamw",
        learning_rate=2e-2,
        warmup_steps=0,
        precision=precision,
        checkpoint_every=30,
        log_every=1,
    )
    losses = []
    result = train(
        model,
        PackedBatches(samples, 32, 0),
        config,
        tmp_path / "run",
        on_step=lambda counters: losses.append(counters.loss),
    )
    assert result.loss < 0.8 * losses[0]
    save_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        trained = model.float()(torch.tensor([SENTENCE])).logits
    other = make_model().eval()
    load_adapter(other, tmp_path / "adapter")
    with torch.no_grad():
        again = other(torch.tensor([SENTENCE])).logits
    torch.testing.assert_close(again, trained, atol=0.1 if precision == "bf16" else 1e-5, rtol=0.05)
    set_adapter(model, None)
    for name, weight in model.named_parameters():
        exact = before[name].bfloat16().float() if precision == "bf16" else before[name]
        assert torch.equal(weight.float(), exact), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor"])
def test_a_stopped_run_on_a_quantized_base_goes_on_with_the_same_bits(
    tmp_path, precision, optimizer
):
    def run(folder, stop=None):
        def on_step(counters):
            if counters.step == stop:
                raise InterruptedError

        model = make_model()
        quantize_nf4_model(model)
        # Large enough for 8 bits.
        add_adapter(model, LoraConfig(r=128, dropout=0.1, targets="all-linear"))
        samples = [completion_sample(SENTENCE[i : i + 1], SENTENCE[i + 1 :]) for i in range(4)]
        config = TrainConfig(
            steps=6,
            optimizer=optimizer,
            warmup_steps=1,
            precision=precision,
            ema=0.9,
            checkpoint_every=4,
            activation_checkpointing="selective",
        )
        result = train(model, PackedBatches(samples, 32, 0), config, folder, on_step=on_step)
        return result.resumed_from, list(model.parameters())

    _, whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", stop=5)
    resumed_from, parts = run(tmp_path / "parts")
    assert resumed_from == 4
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
