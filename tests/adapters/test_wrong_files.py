"""What is no adapter of the model is refused in one sentence that says what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hone.adapters import LoraConfig, add_adapter, load_adapter, save_adapter
from hone.core.errors import CheckpointError
from hone.models import CausalLM, ModelConfig

IDS = torch.arange(10)[None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make_model(**changes):
    model = CausalLM(ModelConfig(**{"vocab_size": 20, "hidden_size": 16} | SIZES | changes))
    model.initialise(seed=0)
    return model.eval()


SIZES = {
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


@pytest.fixture
def folder(tmp_path):
    model = make_model()
    add_adapter(model, LoraConfig(r=2, targets=["q_proj", "v_proj"]))
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def said(folder, model=None):
    model = model or make_model()
    with torch.no_grad():
        before = model(IDS).logits
    with pytest.raises(CheckpointError) as error:
        load_adapter(model, folder)
    with torch.no_grad():  # and the model is as it was
        assert torch.equal(model(IDS).logits, before)
    text = str(error.value)
    assert "\n" not in text.strip()
    return text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("peft_type", "IA3", "'LORA'"),
        ("r", 0, "1 or more"),
        ("r", 3, "shape"),
        ("lora_alpha", "much", "a number"),
        ("bias", "all", "bias"),
        ("lora_bias", True, "lora_bias"),
        ("use_dora", True, "lora_magnitude_vector"),
        ("init_lora_weights", "pissa", "init_lora_weights"),
        ("target_parameters", ["experts.gate_up_proj"], "target_parameters"),
        ("layer_replication", [[0, 1], [0, 1]], "layer_replication"),
        ("use_something_new", True, "use_something_new"),
        ("target_modules", ["q_proj", "v_proj", "o_proj"], "o_proj"),
        ("target_modules", "(q_proj", "no regular expression"),
        ("target_modules", 7, "target_modules"),
        ("modules_to_save", "lm_head", "a list of names"),
        ("layers_to_transform", "all", "layers_to_transform"),
        ("trainable_token_indices", [2], "trained tokens"),
    ],
)
def test_settings(folder, key, value, expected):
    values = json.loads((folder / CONFIG).read_text()) | {key: value}
    (folder / CONFIG).write_text(json.dumps(values))
    assert expected in said(folder)


def test_files(folder, tmp_path):
    assert "no adapter" in said(tmp_path)
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config[:-20])
    assert "line" in said(folder)
    (folder / CONFIG).write_text("[]")
    assert "object" in said(folder)
    (folder / CONFIG).write_text(config)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    assert "truncated" in said(folder)
    (folder / WEIGHTS).unlink()
    assert "no weights" in said(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "pickle" in said(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda name, tensor: (name.replace("base_model.model.", ""), tensor), "begin"),
        (lambda name, tensor: (name.replace("q_proj", "qq_proj"), tensor), "qq_proj"),
        (lambda name, tensor: (name, tensor[:, :-1].contiguous()), "shape"),
        (lambda name, tensor: (name, tensor.int()), "float"),
        (lambda name, tensor: (name.replace("lora_B.weight", "lora_B.bias"), tensor), "no place"),
        (lambda name, tensor: (None if "lora_B" in name else name, tensor), "missing"),
        (lambda name, tensor: (None if "v_proj" in name else name, tensor), "v_proj"),
    ],
)
def test_weights(folder, change, expected):
    tensors = dict(change(*item) for item in load_file(folder / WEIGHTS).items())
    tensors.pop(None, None)
    save_file(tensors, folder / WEIGHTS)
    assert expected in said(folder)


def test_another_model(folder):
    assert "shape" in said(folder, make_model(hidden_size=32))
    assert "no layer" in said(folder, make_model(model_type="gpt_neox", num_key_value_heads=2))


def test_a_half_written_adapter_is_never_there(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = make_model()
    add_adapter(model, LoraConfig(r=4))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hone.adapters.files.save_weights", full)
    with pytest.raises(Exception, match="full"):
        save_adapter(model, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
