"""Adapters go to peft and come from it, for every family, with equal outputs."""

import json
import warnings

import pytest
import torch
from peft_pairs import TASKS, make_ours, make_theirs, peft_adapter, perturb, scores
from safetensors.torch import load_file

from hone.adapters import LoraConfig, add_adapter, load_adapter, save_adapter, set_adapter

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
MASKED, BODY = "AutoModelForMaskedLM", "AutoModel"
CLASSES, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
PAIRS = {
    "llama": ("llama", CAUSAL, {}),
    "qwen2-biases": ("qwen2", CAUSAL, {"tie_word_embeddings": True}),
    "gpt2-turned": ("gpt2", CAUSAL, {}),
    "phi3-joined": ("phi3", CAUSAL, {}),
    "gemma2": ("gemma2", CAUSAL, {"head_dim": 12}),
    "gpt_neox-by-head": ("gpt_neox", CAUSAL, {}),
    "bloom-by-head": ("bloom", CAUSAL, {}),
    "mamba": ("mamba", CAUSAL, {}),
    "mamba2": ("mamba2", CAUSAL, {}),
    "qwen3": ("qwen3", CAUSAL, {"head_dim": 12}),
    "gemma3": ("gemma3_text", CAUSAL, {"head_dim": 12}),
    "bert-classes": ("bert", CLASSES, {"num_labels": 3}),
    "bert-tokens": ("bert", TOKENS, {"num_labels": 3}),
    "bert-masked": ("bert", MASKED, {}),
    "bert-body": ("bert", BODY, {}),
    "roberta-classes": ("roberta", CLASSES, {"num_labels": 3}),
    "modernbert-classes": ("modernbert", CLASSES, {"num_labels": 3}),
    "llama-classes": ("llama", CLASSES, {"num_labels": 3}),
    "gpt2-classes": ("gpt2", CLASSES, {"num_labels": 3}),
    "t5": ("t5", SEQ2SEQ, {}),
    "bart": ("bart", SEQ2SEQ, {}),
}
TARGETS = {
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    # "all-linear" of peft's meets the head, which it also saves whole.
    "bert": r".*(query|key|value|dense)",
    "roberta": r".*(query|key|value|dense)",
    "modernbert": r"model\.layers.*(Wqkv|Wo|Wi)",
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    family, kind, changes = PAIRS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return family, kind, make_theirs(family, kind, folder, **changes), folder


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def opened_in_peft(folder, adapter, kind):
    import peft
    import transformers

    base = getattr(transformers, kind).from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, adapter).eval()
    assert not [each for each in said if "missing" in str(each.message)]
    return model


def test_an_adapter_from_here_opens_in_peft(pair, tmp_path):
    _, kind, theirs, folder = pair
    ours = make_ours(kind, folder)
    plain = scores(ours, kind)
    close(plain, scores(theirs, kind), 1e-4)
    adapter = add_adapter(ours, LoraConfig(r=4, alpha=6, base=str(folder)))
    close(scores(ours, kind), plain)  # a new one changes nothing
    perturb(adapter.weights())
    changed = scores(ours, kind)
    assert (changed - plain).abs().max() > 1e-2
    save_adapter(ours, tmp_path / "adapter")
    found = scores(opened_in_peft(folder, tmp_path / "adapter", kind), kind)
    close(found, changed, 2e-5 if kind != SEQ2SEQ else 1e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == TASKS[kind][1]
    # And again here, with the same bits.
    other = make_ours(kind, folder)
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(scores(other, kind), changed)
    set_adapter(other, None)
    assert torch.equal(scores(other, kind), plain)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "use_rslora": True}])
def test_an_adapter_from_peft_opens_here(pair, tmp_path, settings):
    family, kind, _, folder = pair
    if settings and family in ("mamba", "mamba2"):
        settings = {"use_rslora": True}
    theirs = peft_adapter(
        make_theirs_again(pair),
        kind,
        r=3,
        lora_alpha=5,
        **settings,
        target_modules=TARGETS.get(family, "all-linear"),
    )
    theirs.save_pretrained(tmp_path / "adapter")
    ours = make_ours(kind, folder)
    load_adapter(ours, tmp_path / "adapter")
    close(scores(ours, kind), scores(theirs, kind), 1e-4)
    # What is written back is what was read.
    save_adapter(ours, tmp_path / "again")
    mine = load_file(tmp_path / "again" / "adapter_model.safetensors")
    original = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    unread = {name for name in original if ".pooler." in name} if kind == BODY else set()
    assert mine.keys() == original.keys() - unread
    for name, tensor in original.items():
        if name in unread:
            continue
        assert torch.equal(mine[name], tensor), name


def make_theirs_again(pair):
    from peft_pairs import again

    return again(pair[2], pair[3])
