"""Int8 files of every kind of architecture: read back here, and named as elsewhere."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from hone.core.errors import CheckpointError
from hone.models import load_config, load_model, read_config, save_checkpoint
from hone.models.heads import make_model
from hone.models.summary import summarise
from hone.quant import Int8Linear, quantize_checkpoint

SIZES = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.1}
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 64}
DECODER = SIZES | ATTENTION | {"num_key_value_heads": 2, "pad_token_id": None}
MIXER = SIZES | {"state_size": 8, "pad_token_id": 0}
T5 = {"vocab_size": 61, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
KINDS = {
    "llama": DECODER | {"tie_word_embeddings": True},
    "gpt_neox": SIZES | ATTENTION,
    "phi3": DECODER,
    "mixtral": DECODER | {"num_local_experts": 4},
    "qwen2_moe": DECODER
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "mamba": MIXER | {"time_step_rank": 4},
    "mamba2": MIXER | {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "bert": SIZES | ATTENTION,
    "t5": T5 | {"decoder_start_token_id": 0},
}
HEADS = {
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "gpt_neox": "GPTNeoXForCausalLM",
}
IDS = torch.tensor([[1, 7, 30, 60, 5, 9, 11, 25]])


def write_model(folder, kind, **more):
    names = {"architectures": [HEADS[kind]]} if kind in HEADS else {}
    model = make_model(
        read_config({"model_type": kind} | names | KINDS[kind] | more), None, torch.float32
    )
    model.initialise(seed=3)
    save_checkpoint(folder, model)
    return folder


@pytest.fixture(params=KINDS, scope="module")
def both(request, tmp_path_factory):
    """A checkpoint and its int8 form."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder / "float", request.param)
    quantize_checkpoint(folder / "float", folder / "int8")
    return folder / "float", folder / "int8"


def logits(folder):
    model = load_model(folder, "float32")
    extra = {"decoder_input_ids": IDS} if model.head == "seq2seq" else {}
    with torch.inference_mode():
        return model(IDS, **extra).logits


def test_logits_stay_close(both):
    original, found = (logits(folder) for folder in both)
    # Bounds the rounding to bfloat16 and int8; a wrong layout or router is off by far more.
    assert 0 < (found - original).norm() / original.norm() < 0.05


def test_the_summary_counts_the_bytes_that_are_written(both):
    file = both[1] / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    expected = summarise(load_config(both[0])).weight_bytes["int8"]
    assert expected == file.stat().st_size - header


def test_every_linear_layer_of_transformers_is_int8_or_ignored(both):
    import transformers

    config = transformers.AutoConfig.from_pretrained(both[0])
    with torch.device("meta"):
        theirs = getattr(transformers, config.architectures[0])(config)
    linears = {n for n, module in theirs.named_modules() if type(module) is torch.nn.Linear}
    settings = json.loads((both[1] / "config.json").read_text())["quantization_config"]
    ignored = settings["ignore"]
    stored = load_file(both[1] / "model.safetensors")
    int8 = {n.removesuffix(".weight_scale") for n in stored if n.endswith("_scale")}
    assert linears - int8 == linears & set(ignored)
    if config.model_type == "gpt_neox":
        assert "embed_out" in ignored
    assert int8
    # Experts are linear layers of their own in other readers.
    patterns = [re.compile(entry[3:]) for entry in ignored if entry.startswith("re:")]
    experts = {n.removesuffix(".weight") for n in stored if ".experts." in n}
    assert all(any(p.match(name) for p in patterns) for name in experts)
    assert bool(patterns) == bool(experts)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_routers_stay_float(kind, tmp_path):
    quantize_checkpoint(write_model(tmp_path / "float", kind), tmp_path / "int8")
    model = load_model(tmp_path / "int8")
    kept = {n for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    gates = {"gate"} if kind == "mixtral" else {"gate", "shared_expert_gate"}
    assert kept == {"lm_head"} | {f"model.layers.{i}.mlp.{g}" for i in (0, 1) for g in gates}


def test_files_that_lie_turned_are_refused(tmp_path):
    config = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = make_model(read_config(config), None, torch.float32)
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "float", model)
    with pytest.raises(CheckpointError, match="'gpt2' hold weights as inputs by outputs"):
        quantize_checkpoint(tmp_path / "float", tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
    assert "int8" not in summarise(model.config).weight_bytes


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt_neox"])
@pytest.mark.parametrize("head", ["classification", "token-classification"])
def test_a_new_head_is_float_and_initialised(kind, head, tmp_path):
    quantize_checkpoint(write_model(tmp_path / "float", kind), tmp_path / "int8")
    with pytest.warns(UserWarning, match="are new"):
        model = load_model(tmp_path / "int8", head=head, labels=("a", "b", "c"))
    parts = [model.score] + ([model.transform.dense] if model.transform else [])
    for layer in parts:
        assert type(layer) is torch.nn.Linear
        assert 0 < layer.weight.float().std() < 0.3
        assert not layer.bias.any() if layer.bias is not None else True
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    # What was saved with its new head comes back with it.
    save_checkpoint(tmp_path / "saved", model)
    again = load_model(tmp_path / "saved")
    assert torch.equal(again.score.weight, model.score.weight)
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_what_no_layer_reads_is_kept(tmp_path):
    write_model(tmp_path / "float", "bert", architectures=["BertModel"])
    file = tmp_path / "float" / "model.safetensors"
    pooler = {"pooler.dense.weight": torch.randn(64, 64), "pooler.dense.bias": torch.randn(64)}
    save_file(load_file(file) | pooler, file)
    quantize_checkpoint(tmp_path / "float", tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    for name, tensor in pooler.items():
        assert torch.equal(stored[name], tensor.bfloat16())
    settings = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == ["pooler.dense"]
    with pytest.warns(UserWarning, match="score.weight are new"):
        model = load_model(tmp_path / "int8", head="classification")  # which reads it
    assert torch.equal(model.transform.dense.weight, stored["pooler.dense.weight"])


def test_a_model_of_embeddings_stays_one(tmp_path):
    write_model(tmp_path / "float", "bert", architectures=["BertModel"])
    steps = json.loads((tmp_path / "float" / "modules.json").read_text())
    pooling = tmp_path / "float" / "1_Pooling" / "config.json"
    flags = json.loads(pooling.read_text()) | {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    pooling.write_text(json.dumps(flags))
    quantize_checkpoint(tmp_path / "float", tmp_path / "int8")
    assert json.loads((tmp_path / "int8" / "modules.json").read_text()) == steps
    model = load_model(tmp_path / "int8")
    assert (model.head, model.config.embedding_pooling) == ("embedding", "cls")
    found, original = logits(tmp_path / "int8"), logits(tmp_path / "float")
    assert (found - original).norm() / original.norm() < 0.05
