"""Every way of mixing tokens generates, alone and in any company, the same tokens."""

from pathlib import Path

import pytest
import torch

import hone
from hone.core.errors import CheckpointError
from hone.models import (
    Alibi,
    Buckets,
    CausalLM,
    Classifier,
    Experts,
    Learned,
    ModelConfig,
    NoPositions,
    Rotary,
    StateSpace,
    save_checkpoint,
)
from hone.models.positions import DynamicScaling

CHOICES = {
    "alibi, one key head": {"positions": Alibi(), "num_key_value_heads": 1},
    "buckets": {"positions": Buckets()},
    "learned, post-norm": {"positions": Learned(), "block": "post", "norm": "layer"},
    "no positions": {"positions": NoPositions()},
    "dynamic rotary": {"positions": Rotary(scaling=DynamicScaling(2.0))},
    "half rotary, parallel": {"positions": Rotary(fraction=0.5), "block": "parallel"},
    "window": {"sliding_window": 6},
    "window in one layer, soft caps": {
        "sliding_window": 5,
        "sliding_layers": (0,),
        "attention_softcap": 5.0,
        "logit_softcap": 8.0,
    },
    "experts": {"experts": Experts(4, 2, 32, shared_size=16)},
    "mamba": {"mixer": "mamba", "state_space": StateSpace(96, 8, rank=3)},
    "mamba2": {"mixer": "mamba2", "state_space": StateSpace(96, 8, heads=16)},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_tokens_do_not_depend_on_the_company(choice, tokenizer, prompts, tmp_path: Path):
    values = {"num_key_value_heads": 2, "model_type": "hone"} | CHOICES[choice]
    config = ModelConfig(
        tokenizer.vocab_size,
        48,
        80,
        2,
        6,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        initializer_range=0.25,
        bos_token_id=1,
        eos_token_id=2,
        **values,
    )
    model = CausalLM(config)
    model.initialise(seed=3)
    save_checkpoint(tmp_path / "m", model, tokenizer)
    # What is computed together is not remembered for those that come alone.
    lm = hone.load(tmp_path / "m", options=hone.EngineOptions(prefix_sharing=False))
    params = hone.SamplingParams(max_tokens=10, ignore_eos=True)
    together = [result.token_ids for result in lm.generate(prompts[:7], params)]
    alone = [lm.generate(prompt, params)[0].token_ids for prompt in prompts[:7]]
    assert together == alone
    # The cache changes nothing: every token is the best one after those before it.
    for prompt, ids in zip(prompts[:4], together, strict=False):
        whole = torch.tensor([tokenizer.encode(prompt, add_special_tokens=True) + ids])
        with torch.no_grad():
            best = lm.model(whole).logits[0].argmax(-1)
        assert best[-11:-1].tolist() == ids
    if lm.row_counts() is None:  # no promise of equal bits on this processor
        assert no_product_is_exact()
        return
    one, many = scores(lm, [prompts[5]]), scores(lm, [prompts[5], *(["x " * 50] * 6)])
    assert all(a[0].equal(b[0]) for a, b in zip(one, many, strict=True))


def scores(lm, batch):
    """The logits of every step, in the order of the batch."""
    caught = []
    hook = lm.model.lm_head.register_forward_hook(lambda _, __, out: caught.append(out.clone()))
    lm.generate(batch, hone.SamplingParams(max_tokens=8, ignore_eos=True))
    hook.remove()
    return caught


def no_product_is_exact():
    """Whether products here depend on their number of rows in every size."""
    rows = torch.randn(64, 48)
    layer = torch.nn.Linear(48, 80)
    return any(not layer(rows[:n]).equal(layer(rows)[:n]) for n in (16, 17, 31, 40))


def test_a_row_that_is_done_does_not_stop_the_others(tokenizer, tmp_path):
    config = ModelConfig(
        tokenizer.vocab_size,
        48,
        80,
        1,
        6,
        max_position_embeddings=40,
        positions=Learned(),
        model_type="hone",
    )
    model = CausalLM(config)
    model.initialise(seed=3)
    save_checkpoint(tmp_path / "m", model, tokenizer)
    lm = hone.load(tmp_path / "m")
    prompts = [[1] * 30, *([[2, 3, 4, 5]] * 6)]
    results = lm.generate(prompts, hone.SamplingParams(max_tokens=None, ignore_eos=True))
    assert [len(result.token_ids) for result in results] == [10, *([36] * 6)]


def test_a_model_that_scores_no_tokens_does_not_write(tokenizer, tmp_path):
    config = ModelConfig(tokenizer.vocab_size, 48, 80, 1, 6, tie_word_embeddings=False)
    model = Classifier(config)
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "m", model, tokenizer)
    with pytest.raises(CheckpointError, match="without the layer that scores tokens"):
        hone.load(tmp_path / "m")
