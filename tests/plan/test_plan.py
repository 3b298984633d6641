from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plan_models import FAMILIES, config_of
from torch.utils.flop_counter import FlopCounterMode

from hone.core.errors import ConfigError
from hone.models import make_model, read_config
from hone.plan import GPUS, Layout, Lora, ServeJob, TrainJob, customised, find_device, plan
from hone.plan.flops import training_flops
from hone.plan.trained import Numbers, Use

# The published sizes of Llama 3 8B.
LLAMA_8B = read_config(
    {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }
)
H100 = find_device("h100")
STATIC = ("weights", "float32 masters", "gradients", "optimizer state")


def train(**settings):
    return TrainJob.of_batch(settings.pop("batch", 4), settings.pop("length", 512), **settings)


@pytest.mark.smoke
def test_a_published_model_in_published_numbers():
    made = plan(LLAMA_8B, train(), H100)
    assert made.parameters == 8_030_261_248
    # Mixed precision with Adam is 2 + 4 + 4 + 8 bytes with gradients summed in float32.
    assert sum(made.parts[name] for name in STATIC) == 18 * 8_030_261_248
    assert made.peak == sum(made.parts.values())
    assert not made.fits
    served = plan(LLAMA_8B, ServeJob(context=8192, requests=1), H100)
    assert served.parts["weights"] == 2 * 8_030_261_248
    # 2 · 32 layers · 8 heads · 128 numbers · 2 bytes.
    assert served.serving.cache_per_token == 131_072
    assert served.fits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_planned_for_both(family):
    config = config_of(family)
    for mode in ("none", "selective", "blocks"):
        job = train(length=128, activation_checkpointing=mode)
        made = plan(config, job, H100)
        assert all(size > 0 for size in made.parts.values())
        assert made.tokens_per_second > 0
    served = plan(config, ServeJob(context=128), H100)
    assert served.fits
    assert served.peak > 2 * served.parameters


def test_zero_shards_what_the_paper_says():
    def parts(zero, data=8):
        return plan(LLAMA_8B, train(layout=Layout(data=data, zero=zero)), H100).parts

    whole, numbers = parts(0), 8_030_261_248
    for zero, shared in ((1, STATIC[1::2]), (2, STATIC[1:]), (3, STATIC)):
        found = parts(zero)
        for name in STATIC:
            assert found[name] == (whole[name] // 8 if name in shared else whole[name]), (
                zero,
                name,
            )
    # Figure 1 of the paper at 7.5B and 64 devices: 16.6 GB of 120 with gradients sharded.
    found = parts(2, 64)
    assert found["weights"] == 2 * numbers
    assert sum(found[name] for name in STATIC[1:]) == pytest.approx(16 * numbers / 64)


def test_tensor_pipeline_and_context_shares():
    whole = plan(LLAMA_8B, train(), H100).parts
    tensor = plan(LLAMA_8B, train(layout=Layout(tensor=4)), H100).parts
    assert tensor["weights"] == pytest.approx(whole["weights"] / 4, rel=0.001)
    assert tensor["activations"] == pytest.approx(whole["activations"] / 4, rel=0.001)
    job = train(layout=Layout(pipeline=4), micro_batches=8)
    pipeline = plan(LLAMA_8B, job, H100).parts
    # The first stage has an embedding, and as many micro-batches in flight as there are stages.
    embedding = 128256 * 4096
    body = 8_030_261_248 - 2 * embedding - 4096
    assert pipeline["weights"] == 2 * (body // 4 + embedding)
    assert pipeline["activations"] == pytest.approx(whole["activations"], rel=0.02)
    context = plan(LLAMA_8B, train(length=2048, layout=Layout(context=4)), H100).parts
    assert context["activations"] == pytest.approx(whole["activations"], rel=0.01)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_operations_are_those_that_torch_counts(family, method):
    from planner import batch_of

    from hone.adapters import LoraConfig, add_adapter

    job = TrainJob(lengths=(32,) * 8, precision="fp32", method=method, lora=Lora(rank=4))
    config = config_of(family, hidden_size=128, n_embd=128, intermediate_size=384)
    model = make_model(config)
    model.initialise(0)
    if method == "lora":
        add_adapter(model, LoraConfig(r=4))
    batch = batch_of(config, job)
    with FlopCounterMode(display=False) as counter:
        model.packed_loss(batch).backward()
    numbers = Numbers.of(config, Use.of(job))
    ours = training_flops(config, numbers, job.lengths, job.lengths, "none").total * 256
    if method == "full":  # torch does not count what is added in place: the output layer's gradient
        ours -= 2 * 256 * 1200 * 128
    else:  # nothing reads the gradient of the first block's input
        ours -= 2 * 256 * numbers.layer("model.layers.0.self_attn.q_proj").rows * 128 * 3
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_frozen_weights_need_four_operations_and_not_six():
    full = plan(LLAMA_8B, train(length=16), H100).flops_per_token
    lora = plan(LLAMA_8B, train(length=16, method="lora"), H100).flops_per_token
    assert full == pytest.approx(6 * 7.505e9, rel=0.002)
    assert lora == pytest.approx(4 * 7.505e9 + 6 * 41.9e6, rel=0.002)


def test_decoding_turns_compute_bound_where_both_times_meet():
    made = plan(LLAMA_8B, ServeJob(context=1), H100)
    batch, weights = made.serving.turning_point, 7.5e9
    assert 2 * weights * batch / H100.flops_16 == pytest.approx(2 * weights / H100.bandwidth)
    four_bits = plan(LLAMA_8B, ServeJob(context=1, weights="nf4"), H100).serving.turning_point
    assert four_bits == pytest.approx(batch / 4)


def test_what_fits_when_serving_does_fit_and_one_more_does_not():
    device, job = find_device("l4"), ServeJob(context=4096)
    most = plan(LLAMA_8B, job, device).serving.requests
    assert plan(LLAMA_8B, replace(job, requests=most), device).fits
    assert not plan(LLAMA_8B, replace(job, requests=most + 1), device).fits
    longest = plan(LLAMA_8B, replace(job, prefill=512), device).serving.context
    assert plan(LLAMA_8B, replace(job, prefill=512, context=longest), device).fits
    assert not plan(LLAMA_8B, replace(job, prefill=512, context=longest + 2), device).fits


@pytest.mark.parametrize("device", ["l4", "h100", "t4", "cpu"])
@pytest.mark.parametrize("batch", [1, 16])
def test_changes_make_a_job_fit(device, batch):
    device = customised(find_device(device), memory=min(find_device(device).memory, 100 * 10**9))
    made = plan(LLAMA_8B, train(batch=batch, length=2048), device)
    changes = made.changes()
    assert bool(changes) or device.memory < 16e9
    assert len(changes) <= 3
    for change in changes:
        again = plan(LLAMA_8B, change.job, device)
        assert again.fits
        assert again.peak == change.peak
        if change.job.layout.data == 1:
            assert change.job.step_tokens == made.job.step_tokens
            relative = made.tokens_per_second / again.tokens_per_second
            assert change.slowdown == pytest.approx(relative)
    assert len({change.steps for change in changes}) == len(changes)


def test_the_least_change_comes_first():
    device = find_device("h100")
    made = plan(LLAMA_8B, train(batch=8, length=2048, method="lora"), device)
    assert not made.fits
    steps = [change.steps for change in made.changes()]
    assert steps[0] == ("micro-batches of 4 sequences, 2 to a step",)
    assert ("selective activation checkpointing",) in steps


def test_changes_of_settings_only():
    made = plan(LLAMA_8B, train(batch=8, length=2048), find_device("h200"))
    found = made.changes(9, settings_only=True)
    assert 3 <= len(found) <= 9
    for change in found:
        assert (change.job.method, change.job.layout) == (made.job.method, made.job.layout)


def test_a_serving_job_that_does_not_fit():
    made = plan(LLAMA_8B, ServeJob(context=8192, requests=32), find_device("l4"))
    assert not made.fits
    for change in made.changes():
        assert plan(LLAMA_8B, change.job, made.device).fits


def test_time_and_cost():
    device = customised(H100, price=3.0)
    job = train(length=2048, method="lora", tokens=10**9)
    made = plan(LLAMA_8B, job, device)
    assert made.run_seconds == pytest.approx(1e9 / made.tokens_per_second)
    assert made.cost == pytest.approx(made.run_seconds / 3600 * 3.0)
    assert made.tokens_per_second < H100.flops_16 * made.efficiency / made.flops_per_token
    served = plan(LLAMA_8B, ServeJob(), device)
    assert served.cost == pytest.approx(1e6 / served.tokens_per_second / 3600 * 3)
    assert plan(LLAMA_8B, job, H100).cost is None


small = config_of("llama")
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=6).map(tuple)
settings = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(["adamw", "muon", "adamw_8bit", "adafactor"]),
        "precision": st.sampled_from(["fp32", "bf16"]),
        "method": st.sampled_from(["full", "lora", "qlora"]),
    }
)


@given(lengths, settings)
def test_saving_memory_saves_memory(found, settings):
    def peak(**changes):
        return plan(small, TrainJob(lengths=found, **settings | changes), H100).peak

    whole = peak()
    assert peak(activation_checkpointing="blocks") <= whole
    assert peak(activation_checkpointing="selective") <= whole
    assert plan(small, TrainJob(lengths=(*found, 50), **settings), H100).peak >= whole
    assert peak(ema=0.9) >= whole


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainJob(lengths=()), "at least one sequence"),
        (lambda: TrainJob(lengths=(0,)), "length of a sequence is 0"),
        (lambda: TrainJob.of_batch(0, 8), "number of sequences is 0"),
        (lambda: TrainJob(lengths=(4,), trained=5), "5 tokens are trained of .* 4"),
        (lambda: TrainJob(lengths=(4,), optimizer="adamw8"), 'Did you mean "adamw"|adamw_8bit'),
        (lambda: TrainJob(lengths=(4,), method="dora"), "method is 'dora'"),
        (lambda: TrainJob(lengths=(4, 4), source_lengths=(3,)), "1 sources and 2 answers"),
        (lambda: Layout(zero=4), "zero is 4"),
        (lambda: Layout(tensor=0), "tensor parallelism is 0"),
        (lambda: Lora(rank=0), "rank of LoRA is 0"),
        (lambda: ServeJob(context=0), "context is 0"),
        (lambda: ServeJob(weights="int3"), "weights is 'int3'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_devices_by_their_many_names():
    for name in ("H100", "nvidia h100", "rtx4090", "RTX 4090", "4090", "GeForce RTX 3090", "a100"):
        assert find_device(name).name in {device.name for device in GPUS.values()}
    assert not find_device("cpu").cuda
    with pytest.raises(ConfigError, match=r'no figures of the device "h10"\. Did you mean "h100"'):
        find_device("h10")


def test_this_machine_has_memory_and_a_rate():
    device = find_device("cpu")
    assert device.usable == device.memory > 10**8
    assert device.flops(False) > 1e9
    assert torch.get_num_threads() == 1
