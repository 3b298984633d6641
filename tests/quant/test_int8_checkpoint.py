import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hone.core.errors import CheckpointError
from hone.models import load_model
from hone.quant import Int8Linear, quantize_checkpoint

IDS = torch.tensor([[1, 7, 30, 200, 5, 9, 11, 250]])


@pytest.fixture(scope="module")
def int8(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "model"
    quantize_checkpoint(checkpoint, folder)
    return folder


def dequantized(folder):
    """Plain arithmetic on the files: what another reader of the format would compute with."""
    tensors = load_file(folder / "model.safetensors")
    scales = {name: t for name, t in tensors.items() if name.endswith(".weight_scale")}
    for name, scale in scales.items():
        weight = name.removesuffix("_scale")
        tensors[weight] = tensors[weight].float() * scale.float()
        del tensors[name]
    return {name: tensor.float() for name, tensor in tensors.items()}


@pytest.mark.smoke
def test_the_loaded_model_computes_with_the_dequantized_weights(checkpoint, int8):
    model = load_model(int8, "float32")
    plain = load_model(checkpoint, "float32")
    plain.load_state_dict(dequantized(int8), strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)
        quantized = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert len(quantized) == 14
    assert all(layer.weight.dtype == torch.int8 for layer in quantized)


@pytest.mark.smoke
def test_logits_stay_close_to_the_original(checkpoint, int8):
    with torch.inference_mode():
        original = load_model(checkpoint, "float32")(IDS).logits
        found = load_model(int8, "float32")(IDS).logits
    assert (found - original).norm() / original.norm() < 0.02


@pytest.mark.smoke
def test_files_hold_what_the_format_says(checkpoint, int8):
    config = json.loads((int8 / "config.json").read_text())
    settings = config["quantization_config"]
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "int-quantized")
    assert config["dtype"] == "bfloat16"
    tensors = load_file(int8 / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    assert (tensors[f"{name}.weight"].dtype, tensors[f"{name}.weight"].shape) == (
        torch.int8,
        (64, 96),
    )
    assert tensors[f"{name}.weight_scale"].shape == (64, 1)
    tied = config["tie_word_embeddings"]
    assert ("lm_head.weight" in tensors) != tied
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    copied = {file.name for file in checkpoint.iterdir()}
    assert {file.name for file in int8.iterdir()} == copied
    assert (int8 / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_it_is_smaller_than_bfloat16(checkpoint, int8):
    weights = load_file(checkpoint / "model.safetensors")
    in_bf16 = sum(tensor.numel() for tensor in weights.values()) * 2
    linear = sum(t.numel() for n, t in weights.items() if "proj.weight" in n)
    size = (int8 / "model.safetensors").stat().st_size
    # A byte less for every weight of a linear layer; scales and the header come on top.
    assert size < in_bf16 - 0.85 * linear + 5000


def test_transformers_reads_the_configuration(int8):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(int8)
    assert config.quantization_config["format"] == "int-quantized"


def test_a_quantized_model_is_not_quantized_again(int8, tmp_path):
    with pytest.raises(CheckpointError, match="already"):
        quantize_checkpoint(int8, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_model_is_not_overwritten_by_its_own_quantization(checkpoint):
    with pytest.raises(CheckpointError, match="another directory"):
        quantize_checkpoint(checkpoint, checkpoint / ".." / checkpoint.name)
    with pytest.raises(CheckpointError, match="holds it"):
        quantize_checkpoint(checkpoint, checkpoint.parent)
    assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "pack-quantized", "format"),
        (("config_groups", "group_0", "weights", "num_bits"), 4, "num_bits"),
        (("config_groups", "group_0", "weights", "symmetric"), False, "symmetric"),
        (("config_groups", "group_0", "weights", "strategy"), "group", "strategy"),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}, "input_activations"),
        (("config_groups",), {}, "targets"),
        (("quant_method",), "gptq", "gptq"),
        (("config_groups",), {"a": []}, "targets"),
        (("config_groups", "group_0", "weights"), [8], "num_bits"),
        (("ignore",), ["re:("], "'re:\\(', no regular expression"),
        (("ignore",), [3], r"ignore is \[3\]; expected a list of names"),
        (("ignore",), 3, "ignore is 3; expected"),
        (("ignore",), "lm_head", "ignore is 'lm_head'; expected"),
        ((), "int8", "quantization_config is 'int8'"),
    ],
)
def test_another_format_is_refused_by_name(int8, tmp_path, path, value, message):
    folder = tmp_path / "model"
    shutil.copytree(int8, folder)
    config = json.loads((folder / "config.json").read_text())
    place, path = config, ("quantization_config", *path)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(folder)
    assert str(error.value).startswith(str(folder / "config.json"))
    assert "\n" not in str(error.value)


def test_codes_of_another_integer_are_refused(int8, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(int8, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].int() + 256  # would wrap
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}' is int32; config.json asks for int8"):
        load_model(folder)


def test_layers_to_leave_alone_may_be_patterns(checkpoint, int8, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    shutil.copytree(int8, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head", "re:.*layers\\.0\\.mlp.*"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    original = load_file(checkpoint / "model.safetensors")
    for name in [name for name in tensors if "layers.0.mlp" in name]:
        if name.endswith("_scale"):
            del tensors[name]
        else:
            tensors[name] = original[name].bfloat16()
    save_file(tensors, folder / "model.safetensors")
    model = load_model(folder, "float32")
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 11
