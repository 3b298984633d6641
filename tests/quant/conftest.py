from pathlib import Path

import pytest
import torch

from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["한 줄 and a line"] * 4, 280, chat_template="{{ messages }}")


@pytest.fixture(params=[True, False], ids=["tied", "untied"], scope="session")
def checkpoint(request, tokenizer, tmp_path_factory) -> Path:
    config = ModelConfig(
        vocab_size=280,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=request.param,
        attention_bias=True,
        output_bias=True,
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=2)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp("quant") / "model"
    save_checkpoint(folder, model, tokenizer)
    return folder
