"""A decoder's body with the heads of readers: classes, classes of tokens, embeddings, a reward."""

import pytest
import torch
from interop import (
    REAL,
    ROWS,
    ClassifierInterop,
    EmbeddingInterop,
    Interop,
    TokenClassifierInterop,
)

from hone.models import load_model, save_checkpoint

LABELS = {"id2label": {0: "한국어", 1: "English"}, "label2id": {"한국어": 0, "English": 1}}


class TestLlamaClassifier(ClassifierInterop):
    family = "llama"
    cases = {
        "named": LABELS,
        "several": {"num_labels": 3, "problem_type": "multi_label_classification"},
        "reward": {"num_labels": 1, "tie_word_embeddings": True},
    }


class TestLlamaTokenClassifier(TokenClassifierInterop):
    family = "llama"
    cases = {"named": LABELS}


class TestLlamaEmbedding(EmbeddingInterop):
    family = "llama"
    cases = {"last": {}}
    pooling = "last"


class Untrained(Interop):
    family = "llama"


def test_a_reward_model_begins_as_a_language_model(tmp_path):
    import transformers

    theirs = Untrained().make({"tie_word_embeddings": False})
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match=r"head 'classification': score\.weight are new") as caught:
        reward = load_model(tmp_path / "theirs", head="classification", labels=["reward"])
    assert len(caught) == 1
    hidden = theirs.model(ROWS, attention_mask=REAL).last_hidden_state
    last = hidden[torch.arange(3), REAL.sum(-1) - 1]
    expected = last @ reward.score.weight.T
    torch.testing.assert_close(reward(ROWS, REAL).logits, expected, atol=1e-4, rtol=1e-4)
    assert 0.0 < reward.score.weight.std() < 0.1
    save_checkpoint(tmp_path / "ours", reward)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert again.config.num_labels == 1
    with torch.no_grad():
        found = again(ROWS, attention_mask=REAL).logits
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)


def test_a_new_head_is_the_same_every_time(tmp_path):
    Untrained().make({}).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="are new"):
        one, other = (load_model(tmp_path, head="token-classification") for _ in range(2))
    assert torch.equal(one.score.weight, other.score.weight)
    assert not one.score.bias.any()


def test_a_classifier_continues_as_a_language_model(tmp_path):
    tests = type("Tests", (Untrained,), {"auto_class": "AutoModelForSequenceClassification"})
    tests().make(LABELS).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"head 'causal': lm_head\.weight are new"):
        model = load_model(tmp_path, head="causal")
    assert model(ROWS, REAL).logits.shape == (3, 6, 61)
