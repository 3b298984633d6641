from pathlib import Path

import pytest
import torch

import hone
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

TEXTS = [
    "서울에 사는 고객은 몇 명인가요? How many customers live in Seoul?",
    "가장 비싼 상품의 이름을 알려줘. 😀👨‍👩‍👧‍👦🇰🇷 naïve café — 한글과 이모지",
    "select name, price from product where price > 1000 order by price desc limit 3",
] * 4

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads gain nothing at these sizes, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400, chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, wide enough apart that its output varies."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = CausalLM(config, torch.float32)
    model.initialise(seed=5)
    folder = tmp_path_factory.mktemp("engine") / "model"
    save_checkpoint(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def lm(checkpoint: Path) -> "hone.LM":
    return hone.load(checkpoint)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Texts of many lengths, Korean and emoji among them."""
    words = " ".join(TEXTS[:3]).split()
    return [" ".join(words[start : start + 1 + 3 * start % 17]) for start in range(22)]
