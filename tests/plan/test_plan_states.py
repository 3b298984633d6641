import pytest
import torch
from plan_models import config_of

from hone.kernels import cross_entropy, packed, scan
from hone.kernels.packed import PackedLayout
from hone.models import make_model
from hone.plan import blocks, pack, passes, states
from hone.plan.jobs import Lora, TrainJob
from hone.plan.pack import Pack
from hone.plan.trained import Numbers, Use
from hone.quant import nf4, nf4_footprint, quantize_nf4_model
from hone.train import TrainConfig
from hone.train.optimizers import Optimizer, adamw_8bit, blockwise
from hone.train.optimizers import muon as muon_file

OPTIMIZERS = ("adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba"])
def test_state_is_what_the_optimizer_holds(name, family):
    config = config_of(family)
    model = make_model(config)
    optimizer = Optimizer(model, TrainConfig(steps=1, optimizer=name), torch.float32)
    real = sum(
        tensor.nbytes
        for key, tensor in optimizer.state().items()
        if not key.startswith("weights/") and not key.endswith(".step")
    )
    numbers = Numbers.of(config, Use.of(TrainJob(lengths=(1,), precision="fp32")))
    found = states.states(numbers, name, ema=False, cuda=False)
    assert found.optimizer == real
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.gradients == found.weights


def test_a_paged_state_is_the_hosts_on_a_gpu_only():
    numbers = Numbers.of(config_of("llama"), Use("full", "bf16", (), Lora()))
    there, here = (states.states(numbers, "paged_adamw", False, cuda) for cuda in (True, False))
    assert (there.optimizer, there.host) == (0, here.optimizer)
    assert here.host == 0


def test_4_bit_weights_take_what_hone_holds():
    config = config_of("llama", hidden_size=256, intermediate_size=512, head_dim=64)
    model = make_model(config)
    model.initialise(0)
    quantize_nf4_model(model)
    real = nf4_footprint(model)
    numbers = Numbers.of(config, Use("qlora", "fp32", (), Lora()))
    codes = [states.nf4_bytes(w.count) for w in numbers.weights if w.name in numbers.quantized]
    assert sum(map(sum, codes)) == real.bytes
    assert numbers.quantized_numbers == real.weights
    whole = states.states(numbers, "adamw", False, False)
    assert whole.weights + whole.constants == real.bytes + real.kept_bytes


def test_constants_are_those_of_the_code_that_is_planned():
    assert pack.LEAST_SHARE == packed._LEAST_SHARE
    assert (pack.BLOCK, pack.UNCUT) == (packed._BLOCK, packed._UNCUT)
    assert pack.LONGEST_KEPT == packed._LONGEST_KEPT
    assert passes.CHUNK_BYTES == cross_entropy._CHUNK_BYTES
    assert passes.FEWEST_ROWS == cross_entropy._FEWEST_ROWS
    assert passes.AT_ONCE == {"cpu": nf4._CPU_AT_ONCE, "cuda": nf4._GPU_AT_ONCE}
    numbers = (blocks.SCAN_NUMBERS, blocks.SCAN_FEWEST, blocks.SCAN_MOST)
    assert numbers == (scan._BLOCK, scan._FEWEST_TOKENS, scan._MOST_TOKENS)
    assert (states.SMALLEST, states.BLOCK) == (adamw_8bit.SMALLEST, blockwise.BLOCK)
    assert (states.NF4_BLOCK, states.NF4_NESTED) == (nf4.BLOCK, nf4.NESTED_BLOCK)
    assert states.TOGETHER == muon_file._TOGETHER


@pytest.mark.parametrize(
    "lengths", [(5,), (300, 250, 200, 100, 90, 80, 40), (64,) * 5, (1, 2, 900)]
)
def test_groups_are_those_of_attention(lengths):
    layout = PackedLayout(torch.tensor([0, *lengths]).cumsum(0).int())
    ours = Pack(lengths)
    assert [(g.sequences, g.length) for g in ours.groups] == [g[:2] for g in layout.groups]
    assert (ours.tokens, ours.slots) == (layout.tokens, layout.slots)


@pytest.mark.parametrize("lengths", [(7,), (300, 40), (64,) * 5])
def test_the_scan_keeps_as_many_states(lengths):
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    _, real, numbers = scan._cut(bounds, 512, 16)
    assert blocks.scan_blocks(lengths, 512, 16) == (len(real), 4 * numbers)
