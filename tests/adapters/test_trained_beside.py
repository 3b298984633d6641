"""Embeddings, heads and tokens that are trained beside updates, to peft and from it."""

import json

import peft
import pytest
import torch
from peft_pairs import IDS, again, make_ours, make_theirs, peft_adapter, perturb, scores

from hone.adapters import (
    LoraConfig,
    add_adapter,
    load_adapter,
    merge,
    remove_adapters,
    resize_vocabulary,
    save_adapter,
    set_adapter,
    unmerge,
)
from hone.core.errors import CheckpointError, ConfigError
from hone.models import load_model, save_checkpoint

CAUSAL = "AutoModelForCausalLM"
BESIDE = {
    "embedding": ({"targets": ["q_proj", "embed_tokens"]}, {}),
    "embedding-dora": ({"targets": ["q_proj", "embed_tokens"], "dora": True}, {}),
    "head": ({"targets": ["q_proj", "lm_head"]}, {}),
    "whole-head": ({"targets": ["q_proj"], "modules_to_save": ["lm_head"]}, {}),
    "whole-embedding": ({"targets": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}),
    "norms": ({"targets": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]}, {}),
    "tokens": ({"targets": ["q_proj"], "token_ids": [60, 5, 9]}, {}),
    "tokens-by-name": ({"targets": ["q_proj"], "token_ids": {"embed_tokens": [5, 60]}}, {}),
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside") / "base"
    return make_theirs("llama", CAUSAL, folder, tie_word_embeddings=request.param), folder


def in_peft(base, adapter, tokens=None):
    theirs, folder = base
    model = again(theirs, folder)
    if tokens:
        model.resize_token_embeddings(tokens)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_to_peft_and_merged(base, case, tmp_path):
    settings, _ = BESIDE[case]
    ours = make_ours(CAUSAL, base[1])
    plain = scores(ours, CAUSAL)
    adapter = add_adapter(ours, LoraConfig(r=4, base=str(base[1]), **settings))
    close(scores(ours, CAUSAL), plain)
    perturb(adapter.weights())
    changed = scores(ours, CAUSAL)
    assert (changed - plain).abs().max() > 1e-2
    save_adapter(ours, tmp_path / "adapter")
    close(scores(in_peft(base, tmp_path / "adapter"), CAUSAL), changed)
    other = make_ours(CAUSAL, base[1])
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(scores(other, CAUSAL), changed)
    # Merged, taken out and put back to the last bit; merged for good and saved.
    merge(other)
    close(scores(other, CAUSAL), changed)
    unmerge(other)
    assert torch.equal(scores(other, CAUSAL), changed)
    merge(other)
    remove_adapters(other)
    save_checkpoint(tmp_path / "merged", other)
    close(scores(load_model(tmp_path / "merged"), CAUSAL), changed)


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_from_peft(base, case, tmp_path):
    settings, _ = BESIDE[case]
    names = {
        "targets": "target_modules",
        "dora": "use_dora",
        "token_ids": "trainable_token_indices",
    }
    theirs = peft_adapter(
        again(*base), CAUSAL, r=4, **{names.get(name, name): x for name, x in settings.items()}
    )
    theirs.save_pretrained(tmp_path / "adapter")
    ours = make_ours(CAUSAL, base[1])
    plain = scores(ours, CAUSAL)
    load_adapter(ours, tmp_path / "adapter")
    close(scores(ours, CAUSAL), scores(theirs, CAUSAL))
    set_adapter(ours, None)
    assert torch.equal(scores(ours, CAUSAL), plain)


ADDED = {
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "whole-embedding": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"token_ids": [61, 62, 63]},
    "update": {"targets": ["q_proj", "embed_tokens", "lm_head"]},
    "nothing": {},
}


@pytest.mark.parametrize("case", ADDED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_added_tokens(base, case, tmp_path):
    """A larger vocabulary goes to peft, comes from it, and leaves with the adapter."""
    ids = torch.where(IDS == 60, 62, IDS)
    ours = make_ours(CAUSAL, base[1])
    resize_vocabulary(ours, 64)
    settings = {"targets": ["q_proj"]} | ADDED[case]
    adapter = add_adapter(ours, LoraConfig(r=4, base=str(base[1]), **settings))
    perturb(adapter.weights())
    with torch.no_grad():
        changed = ours(ids).logits
        assert changed.shape[-1] == 64
        save_adapter(ours, tmp_path / "adapter")
        close(in_peft(base, tmp_path / "adapter", 64)(input_ids=ids).logits, changed)
        other = make_ours(CAUSAL, base[1])
        plain = scores(other, CAUSAL)
        load_adapter(other, tmp_path / "adapter")
        assert other.config.vocab_size == 64
        close(other(ids).logits, changed)
        save_adapter(other, tmp_path / "again")
        close(in_peft(base, tmp_path / "again", 64)(input_ids=ids).logits, changed)
        merge(other)
        close(other(ids).logits, changed)
        set_adapter(other, None)
        assert other.config.vocab_size == 61
        assert torch.equal(scores(other, CAUSAL), plain)
        # From peft.
        theirs = again(*base)
        theirs.resize_token_embeddings(64)
        names = {"targets": "target_modules", "token_ids": "trainable_token_indices"}
        theirs = peft_adapter(
            theirs, CAUSAL, r=4, **{names.get(name, name): x for name, x in settings.items()}
        )
        theirs.save_pretrained(tmp_path / "theirs")
        load_adapter(other, tmp_path / "theirs", "theirs")
        close(other(ids).logits, theirs(input_ids=ids).logits)


def test_a_tied_weight_that_parts_is_said(base, tmp_path):
    ours = make_ours(CAUSAL, base[1])
    perturb(add_adapter(ours, LoraConfig(r=2, targets=["q_proj", "lm_head"])).weights())
    if not base[0].config.tie_word_embeddings:
        merge(ours)
        return
    with pytest.warns(UserWarning, match="share no weight any more"):
        merge(ours)
    assert not ours.config.tie_word_embeddings
    unmerge(ours)
    assert ours.config.tie_word_embeddings
    assert ours.lm_head.base.weight is ours.embedding.weight


def test_tokens_of_a_tied_embedding_stay_tied(base):
    ours = make_ours(CAUSAL, base[1])
    perturb(add_adapter(ours, LoraConfig(targets=["q_proj"], token_ids=[4, 60])).weights())
    merge(ours)
    tied = base[0].config.tie_word_embeddings
    assert ours.config.tie_word_embeddings == tied
    assert (ours.lm_head.weight is ours.embedding.weight) == tied


def test_a_family_whose_weight_cannot_part(tmp_path):
    theirs = make_theirs("bart", "AutoModelForSeq2SeqLM", tmp_path / "base")
    del theirs
    ours = make_ours("AutoModelForSeq2SeqLM", tmp_path / "base")
    perturb(add_adapter(ours, LoraConfig(targets=["lm_head"])).weights())
    with pytest.raises(CheckpointError, match="one weight for both"):
        merge(ours)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ["q_porj"]}, "q_proj"),
        ({"targets": r"(unclosed"}, "no regular expression"),
        ({"modules_to_save": ["lm_haed"]}, "lm_head"),
        ({"modules_to_save": ["q_proj"], "targets": r".*q_proj", "layers": [0]}, "q_proj"),
        ({"token_ids": [61]}, "0 to 60"),
        ({"token_ids": [3, 3]}, "twice"),
        ({"token_ids": {"wte": [3]}}, "wte"),
        ({"targets": ["embed_tokens"], "token_ids": [3]}, "not both"),
        ({"r": 0}, "1 or more"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_settings_that_cannot_be(base, settings, said):
    ours = make_ours(CAUSAL, base[1])
    with pytest.raises(ConfigError, match=said):
        add_adapter(ours, LoraConfig(**settings))
    assert scores(ours, CAUSAL).shape[-1] == 61


def test_a_classifier_saves_its_head(tmp_path):
    make_theirs("roberta", "AutoModelForSequenceClassification", tmp_path / "base", num_labels=3)
    ours = make_ours("AutoModelForSequenceClassification", tmp_path / "base")
    add_adapter(ours, LoraConfig(targets=["query"]))
    trained = {name for name, weight in ours.named_parameters() if weight.requires_grad}
    assert {"score.weight", "score.bias", "transform.dense.weight"} <= trained
    save_adapter(ours, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
