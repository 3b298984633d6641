"""NF4 files: those that transformers writes with bitsandbytes, and ours as it reads them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hone.core.errors import CheckpointError, RequestError
from hone.models import load_model, read_config, save_checkpoint
from hone.models.heads import make_model
from hone.quant import Nf4Linear, load_nf4, nf4_footprint, quantize_checkpoint, quantize_nf4_model

IDS = torch.tensor([[1, 7, 30, 60, 5, 9, 11, 25]])
SIZES = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.1}
DECODER = SIZES | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
# Straight, joined, turned and joined, joined by head, with layers that stay float, with experts.
KINDS = {
    "llama": DECODER | {"tie_word_embeddings": True, "intermediate_size": 88},
    "phi3": DECODER,
    "gpt2": {"vocab_size": 61, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.1},
    "gpt_neox": SIZES | {"num_attention_heads": 4, "intermediate_size": 128},
    "t5": {"vocab_size": 61, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1}
    | {"num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0},
    "qwen2_moe": DECODER
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    | {"shared_expert_intermediate_size": 64},
}
HEADS = {"t5": "T5ForConditionalGeneration", "gpt2": "GPT2LMHeadModel"}


def write_model(folder, kind, **more):
    names = {"architectures": [HEADS[kind]]} if kind in HEADS else {}
    config = read_config({"model_type": kind} | names | KINDS[kind] | more)
    model = make_model(config, None, torch.float32)
    model.initialise(seed=3)
    save_checkpoint(folder, model)
    return folder


def answer(model):
    extra = {"decoder_input_ids": IDS} if model.config.model_type == "t5" else {}
    with torch.inference_mode():
        return model(IDS, **extra).logits


@pytest.fixture(params=KINDS, scope="module")
def both(request, tmp_path_factory):
    """A checkpoint and its NF4 form."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder / "float", request.param)
    quantize_checkpoint(folder / "float", folder / "nf4", "nf4")
    return folder / "float", folder / "nf4"


def their_model(folder, **options):
    """What transformers loads, computing in float32 throughout."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **options)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():  # files of bfloat16 are kept so, next to NF4 layers
            tensor.data = tensor.data.float()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    return model.eval()


def test_transformers_reads_our_files(both):
    ours, theirs = load_model(both[1], "float32"), their_model(both[1])
    torch.testing.assert_close(answer(ours), answer(theirs), atol=1e-5, rtol=1e-5)


def test_files_of_transformers_are_read_and_equal_ours(both, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = their_model(both[0], quantization_config=config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", "float32")
    torch.testing.assert_close(answer(ours), answer(theirs), atol=1e-5, rtol=1e-5)
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    written = load_file(both[1] / "model.safetensors")
    codes = {name for name, tensor in written.items() if ".weight." in name}
    codes |= {name.partition(".weight.")[0] + ".weight" for name in codes}
    assert codes
    for name in codes:
        assert stored[name].dtype == written[name].dtype, name
        assert torch.equal(stored[name], written[name]), name
    # Theirs quantizes the gates of shared experts as well; ours leaves what chooses experts.
    more = {name.partition(".weight")[0] for name in stored if name not in written}
    assert all(name.endswith("shared_expert_gate") for name in more)


def test_what_is_quantized_while_it_is_loaded_equals_what_is_quantized_after(both):
    loaded = load_nf4(both[0], "float32")
    after = load_model(both[0], "float32")
    quantize_nf4_model(after)
    assert loaded.state_dict().keys() == after.state_dict().keys()
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert nf4_footprint(loaded) == nf4_footprint(after)
    # The files hold the same weights, in bfloat16 beside them.
    assert (answer(loaded) - answer(load_model(both[1], "float32"))).abs().max() < 0.05


def test_a_new_head_is_float_and_initialised(tmp_path):
    write_model(tmp_path / "float", "llama")
    quantize_checkpoint(tmp_path / "float", tmp_path / "nf4", "nf4")
    for name in ("nf4", "float"):
        with pytest.warns(UserWarning, match="are new"):
            model = load_nf4(tmp_path / name, head="classification", labels=("가", "나", "다"))
        assert type(model.score) is torch.nn.Linear
        assert 0 < model.score.weight.float().std() < 0.3
        assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == 14


def test_a_quantized_model_is_not_quantized_again(both, tmp_path):
    with pytest.raises(CheckpointError, match="already"):
        quantize_checkpoint(both[1], tmp_path / "twice", "nf4")
    with pytest.raises(CheckpointError, match="already; load the original"):
        load_model(both[1], quantize=lambda model, kept: quantize_nf4_model(model, kept=kept))


@pytest.fixture(scope="module")
def nf4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nf4")
    write_model(folder / "float", "llama")
    quantize_checkpoint(folder / "float", folder / "nf4", "nf4")
    return folder / "nf4"


@pytest.mark.smoke
def test_the_files_are_a_third_of_bfloat16(nf4):
    config = json.loads((nf4 / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"] is True
    assert config["quantization_config"]["llm_int8_skip_modules"] == ["lm_head"]
    tensors = load_file(nf4 / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert tensors[name].shape == (64 * 88 // 2, 1)
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    said = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
    assert (said["shape"], said["blocksize"], said["nested_blocksize"]) == ([64, 88], 64, 256)
    assert isinstance(load_model(nf4).model.layers[1].mlp.down_proj, Nf4Linear)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bnb_4bit_quant_type", "fp4", "bnb_4bit_quant_type is 'fp4'"),
        ("load_in_4bit", False, "load_in_4bit is False"),
        ("bnb_4bit_quant_storage", "bfloat16", "bnb_4bit_quant_storage is 'bfloat16'"),
    ],
)
def test_another_format_is_refused_by_name(nf4, tmp_path, key, value, message):
    folder = shutil.copytree(nf4, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(folder)
    assert str(error.value).startswith(str(folder / "config.json"))


def as_bytes(values):
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", lambda t: t[:-1], r"has the shape \[2815, 1\]"),
        ("", lambda t: t.float(), r"has the shape \[2816, 1\]; config.json asks for \[64, 88\]"),
        (".absmax", lambda t: t.float(), "is float32; config.json asks for uint8"),
        (".quant_map", lambda t: t * 2, "other levels than those of NF4"),
        (".quant_state.bitsandbytes__nf4", lambda t: t[:-3], "does not describe an NF4 weight"),
        (
            ".quant_state.bitsandbytes__nf4",
            lambda t: as_bytes(json.loads(bytes(t.tolist())) | {"blocksize": 128}),
            "blocksize is 128; expected 64",
        ),
        (".nested_absmax", lambda t: None, "nested_absmax' is in none of its files"),
        (".quant_state.bitsandbytes__nf4", lambda t: None, "nested_offset' is in none of its"),
    ],
)
def test_broken_files_are_refused_by_name(nf4, tmp_path, part, change, message):
    folder = shutil.copytree(nf4, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.down_proj.weight{part}"
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_weight_with_nan_is_refused_and_nothing_is_written(tmp_path):
    folder = write_model(tmp_path / "float", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="NaN"),
        pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.up_proj.weight': NF4 cannot"),
    ):
        quantize_checkpoint(folder, tmp_path / "nf4", "nf4")
    assert not (tmp_path / "nf4").exists()


def test_an_unknown_method_is_refused(nf4, tmp_path):
    with pytest.raises(RequestError, match="'nf5' is unknown; choose int8, nf4"):
        quantize_checkpoint(nf4, tmp_path / "out", "nf5")
