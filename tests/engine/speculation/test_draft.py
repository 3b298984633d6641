"""The smaller model's guesses are its own greedy continuation, whatever came true before."""

from dataclasses import replace
from random import Random

import pytest
import torch

from hone.core.errors import CheckpointError, ConfigError
from hone.engine.options import EngineOptions
from hone.engine.request import Request
from hone.engine.sequence import Sequence
from hone.engine.speculation import load_speculation
from hone.engine.speculation.draft import DraftModelProposer
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

OPTIONS = EngineOptions(max_running=4, block_size=4)


def small_model(**changes):
    config = ModelConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    model = CausalLM(replace(config, **changes), torch.float32)
    model.initialise(3)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return small_model()


def sequence(tokens, key=0):
    return Sequence(key, Request("r", tuple(tokens)), 0, 0, 0.0, list(tokens), len(tokens))


def greedy(model, tokens, count):
    text = list(tokens)
    for _ in range(count):
        with torch.inference_mode():
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(tokens) :]


@pytest.mark.smoke
def test_guesses_are_the_greedy_continuation_of_every_sequence(model):
    random = Random(0)
    proposer = DraftModelProposer(model, 40, OPTIONS)
    sequences = [sequence([random.randrange(40) for _ in range(n)], n) for n in (1, 5, 9, 14)]
    free = proposer._pool.free
    for _ in range(5):
        most = [random.randint(0, 4) for _ in sequences]
        for one, limit, draft in zip(
            sequences, most, proposer.propose(sequences, most), strict=True
        ):
            assert draft.tokens == greedy(model, one.tokens, limit)
            # Some guesses come true, and then something else, or a guess that was not read.
            true = random.randint(0, limit)
            one.tokens += draft.tokens[:true]
            if random.random() < 0.8 or not true:
                one.tokens.append(random.randrange(40))
        random.shuffle(sequences)
    for one in sequences:
        proposer.forget(one)
        proposer.forget(one)
    assert proposer._pool.free == free


def test_long_prompts_are_read_in_pieces_between_passes():
    model = small_model(max_position_embeddings=2048)
    proposer = DraftModelProposer(model, 40, OPTIONS)
    random = Random(1)
    long, short = ([random.randrange(40) for _ in range(n)] for n in (1200, 3))
    one, two = sequence(long, 1), sequence(short, 2)
    found = [proposer.propose([one, two], [2, 2]) for _ in range(3)]
    assert [len(draft.tokens) for draft, _ in found] == [0, 0, 2]
    assert found[2][0].tokens == greedy(model, one.tokens, 2)
    assert {len(draft.tokens) for _, draft in found} <= {0, 2}


def test_no_room_or_too_long_a_text_is_no_guess(model):
    lean = EngineOptions(cache_bytes=8_000, block_size=4)
    proposer = DraftModelProposer(model, 40, lean)
    room = proposer._pool.free * 4
    assert room < 60
    tokens = [1, 2, 3] * 30
    one, two = sequence(tokens[: room - 8], 1), sequence(tokens[:20], 2)
    drafts = proposer.propose([one, two], [4, 4])
    assert [len(draft.tokens) for draft in drafts] == [4, 0]
    proposer.forget(one)
    assert len(proposer.propose([two], [4])[0].tokens) == 4
    whole = DraftModelProposer(model, 40, OPTIONS)
    assert whole.propose([sequence(tokens[:63])], [4])[0].tokens == []
    assert DraftModelProposer(model, 60, OPTIONS).propose([sequence([50])], [4])[0].tokens == []


def test_it_is_loaded_by_name_and_only_with_the_same_tokens(lm, checkpoint, tmp_path):
    def load(name):
        return load_speculation(lm.model, lm.tokenizer, EngineOptions(speculation=name))

    assert load(None) is None
    assert load("ngram") is not None
    prompt = lm.tokenizer.encode("서울에 사는 고객은")
    found = load(f"draft:{checkpoint}")
    (draft,) = found.proposer.propose([sequence(prompt)], [4])
    assert draft.tokens == greedy(lm.model, prompt, 4)  # the model itself, as its own draft
    other = Tokenizer.train(["다른 낱말과 other words"], 300)
    config = replace(lm.config, vocab_size=other.vocab_size)
    model = CausalLM(config, torch.float32)
    model.initialise(0)
    save_checkpoint(tmp_path / "other", model, other)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        load(f"draft:{tmp_path / 'other'}")
    for name in ("medusa", "draft:", "lookup"):
        with pytest.raises(ConfigError, match="speculation is"):
            load(name)
    with pytest.raises(CheckpointError, match="medusa"):
        load(f"medusa:{tmp_path}")
