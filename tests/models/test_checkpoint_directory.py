import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_llama import make_model

from hone.core.errors import CapacityError, CheckpointError, RequestError
from hone.models import find_family, load_config, load_model, save_checkpoint
from hone.models.weights import file_tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A good checkpoint; copy it before breaking it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_checkpoint(folder, make_model(tie_word_embeddings=False))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.smoke
def test_there_and_back(model, tmp_path):
    save_checkpoint(tmp_path / "m", model, generation={"eos_token_id": [2, 3]})
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert ("lm_head.weight" in stored) != model.config.tie_word_embeddings
    generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 3]
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    assert not again.training
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    # Saving what was loaded writes the same bytes.
    save_checkpoint(tmp_path / "n", again, generation={"eos_token_id": [2, 3]})
    for name in names:
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_a_directory_saved_by_transformers(tmp_path, tied, shards):
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM as TheirModel

    torch.manual_seed(0)
    theirs = TheirModel(
        TheirConfig(
            vocab_size=67,
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
    ).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors").exists() != shards
    ours = load_model(tmp_path)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_tied_file_may_hold_the_output_layer_too(tmp_path):
    model = make_model(tie_word_embeddings=True)
    save_checkpoint(tmp_path / "m", model)
    edit_weights(
        tmp_path / "m",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    again = load_model(tmp_path / "m")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_on_request(folder, dtype):
    model = load_model(folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {model.dtype}
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
    assert load_model(folder).dtype == torch.float32
    for unknown in ("half", torch.int8):
        with pytest.raises(CheckpointError, match=r"dtype '(half|int8)' is unknown"):
            load_model(folder, dtype=unknown)


@pytest.mark.parametrize("device", ["foo", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_no_lack_of_memory(folder, device):
    with pytest.raises(RequestError, match=f"device '{device}'") as error:
        load_model(folder, device=device)
    assert "\n" not in str(error.value)


def test_a_lack_of_memory_is_named(folder, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(torch.nn.Module, "to_empty", full)
    with pytest.raises(CapacityError, match="no memory on cpu for the weights of"):
        load_model(folder)


def test_saving_takes_no_second_copy_of_the_weights(folder):
    model = load_model(folder)  # its queries, keys and values lie behind one another
    found = file_tensors(find_family("llama"), model.config, model)
    mine = {tensor.data_ptr() for tensor in model.parameters()}
    assert len(found) == len(list(model.parameters()))
    assert {tensor.data_ptr() for tensor in found.values()} == mine


def test_what_was_there_before_is_replaced_whole(folder, tmp_path):
    (folder / "stale.txt").write_text("old")
    save_checkpoint(folder, make_model())
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    class Tokenizer:
        vocab_size = 62

        def save(self, directory):
            (directory / "tokenizer.json").write_text("{}")

    with pytest.raises(CheckpointError, match="62 tokens and the model embeddings for 61"):
        save_checkpoint(tmp_path / "m", make_model(), Tokenizer())
    assert not (tmp_path / "m").exists()
    Tokenizer.vocab_size = 61
    save_checkpoint(tmp_path / "m", make_model(), Tokenizer())
    assert (tmp_path / "m" / "tokenizer.json").exists()


def test_nan_is_loaded_with_a_warning(folder):
    edit_weights(folder, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.warns(UserWarning, match="'model.norm.weight' holds NaN"):
        load_model(folder)


def set_key(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def to_index(content):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, "is no directory"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json, line 1: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, found list"),
        (lambda f: set_key(f, model_type="opt"), "model_type is 'opt'"),
        (
            lambda f: set_key(f, quantization_config={"quant_method": "hqq"}),
            "quant_method is 'hqq'",
        ),
        (
            lambda f: set_key(f, quantization_config="int8"),
            "quantization_config is 'int8'; expected an object",
        ),
        (
            lambda f: set_key(f, vocab_size=99),
            r"has the shape \[61, 40\]; config.json asks for \[99",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is truncated"),
        (truncate, "model.safetensors is truncated"),
        (to_pickle, "as a pickle"),
        (to_index("{}"), "'weight_map' is missing"),
        (to_index("nonsense"), "line 1: not valid JSON"),
        (to_index('{"weight_map": {"a": "shard.safetensors"}}'), "shard.safetensors, which is not"),
        (to_index('{"weight_map": {"a": "../x"}}'), "outside its directory"),
        (lambda f: edit_weights(f, lambda t: t.pop(NORM)), f"'{NORM}' is in none"),
        (
            lambda f: edit_weights(f, lambda t: t.update({"extra.weight": torch.ones(1)})),
            "no place for the weight 'extra.weight'",
        ),
        (
            lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(40).to(torch.int8)})),
            f"'{NORM}' is int8",
        ),
        (
            lambda f: edit_weights(
                f, lambda t: t.update({NORM: torch.ones(40).to(torch.float8_e4m3fn)})
            ),
            f"'{NORM}' is float8_e4m3fn",
        ),
    ],
)
def test_damage_is_named_in_one_sentence(folder, damage, expected):
    damage(folder)
    with pytest.raises(CheckpointError, match=expected) as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_config_alone(folder):
    assert load_config(folder).hidden_size == 40


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from hone.core.errors import CapacityError

    def save(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hone.models.checkpoint.save_file", save)
    with pytest.raises(CapacityError, match="is full"):
        save_checkpoint(tmp_path / "m", make_model())
    assert not list(tmp_path.iterdir())


def test_the_advice_for_a_pickle_keeps_the_output_layer(folder):
    to_pickle(folder)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM\.from_pretrained"):
        load_model(folder)
