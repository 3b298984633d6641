"""`hone merge`: an adapter and its base become one checkpoint."""

import json

import pytest
import torch
from typer.testing import CliRunner

import hone
from hone.adapters import LoraConfig, add_adapter, save_adapter
from hone.cli.app import app
from hone.core.errors import CheckpointError, ConfigError
from hone.core.hub import find_checkpoint
from hone.models import CausalLM, ModelConfig, load_model, save_checkpoint
from hone.quant import quantize_checkpoint
from hone.text.tokenizer import Tokenizer

TEXTS = ["서울에 사는 고객은 몇 명인가요?", "가장 비싼 상품의 이름을 알려줘."] * 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter of it, and the tokenizer."""
    folder = tmp_path_factory.mktemp("merge")
    tokenizer = Tokenizer.train(TEXTS, 300)
    config = ModelConfig(tokenizer.vocab_size, 64, 64, 2, 4, 2, initializer_range=0.2)
    model = CausalLM(config)
    model.initialise(seed=3)
    save_checkpoint(folder / "base", model, tokenizer)
    adapter = add_adapter(model, LoraConfig(r=4, base=str(folder / "base")))
    with torch.no_grad():
        for weight in adapter.weights():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 4)
    save_adapter(model, folder / "어댑터")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        return folder, ids, model.eval()(ids).logits


@pytest.mark.smoke
def test_merged_is_a_whole_model(made, tmp_path):
    folder, ids, logits = made
    out = tmp_path / "merged"
    shown = CliRunner().invoke(app, ["merge", str(folder / "어댑터"), "-o", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.output)
    assert record["base"] == str(folder / "base")
    assert record["notes"] == []
    with torch.no_grad():
        torch.testing.assert_close(load_model(out)(ids).logits, logits, atol=1e-4, rtol=1e-4)
    assert (out / "tokenizer.json").read_bytes() == (folder / "base/tokenizer.json").read_bytes()
    assert not (out / "adapter_config.json").exists()
    # The adapter itself writes what the merged model writes.
    prompt = "서울에"
    (beside,), (merged,) = (hone.load(path).generate(prompt) for path in (folder / "어댑터", out))
    assert beside.token_ids == merged.token_ids


def test_a_quantized_base_is_dequantized_and_that_is_said(made, tmp_path):
    folder, ids, logits = made
    quantize_checkpoint(folder / "base", tmp_path / "int8")
    out = tmp_path / "merged"
    shown = CliRunner().invoke(
        app, ["merge", str(folder / "어댑터"), "-o", str(out), "--base", str(tmp_path / "int8")]
    )
    assert shown.exit_code == 0, shown.output
    assert "14 layers were dequantized to bfloat16" in " ".join(shown.output.split())
    merged = load_model(out, "float32")
    assert merged.config.quantization_config is None
    with torch.no_grad():
        assert (merged(ids).logits - logits).abs().mean() < 0.1 * logits.abs().mean()


def test_what_cannot_be_merged_is_one_sentence(made, tmp_path):
    folder, *_ = made

    def said(*arguments):
        return CliRunner().invoke(app, ["merge", *map(str, arguments)]).exception

    adapter = folder / "어댑터"
    assert "no adapter" in str(said(folder / "base", "-o", tmp_path / "x"))
    error = said(adapter, "-o", folder)
    assert isinstance(error, ConfigError | CheckpointError)
    assert isinstance(said(adapter, "-o", adapter), ConfigError | CheckpointError)
    assert (adapter / "adapter_config.json").is_file()
    with pytest.raises(CheckpointError, match="hone merge"):
        find_checkpoint(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base in (None, str(tmp_path / "없음")):
        lost = tmp_path / f"lost-{base is None}"
        lost.mkdir()
        (lost / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": base})
        )
        assert isinstance(said(lost, "-o", tmp_path / "y"), CheckpointError)
