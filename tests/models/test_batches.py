"""Padded batches at the door of a model: what is kept, what comes back, what is refused."""

import pytest
import torch
from small_llama import make_config

from hone.core.errors import CheckpointError, RequestError
from hone.engine.cache import RowCache
from hone.models import ModelConfig, Rotary, load_model, save_checkpoint
from hone.models.config import StateSpace
from hone.models.heads import make_model
from hone.models.padding import Padding

IDS = torch.tensor([[0, 0, 0, 7, 8, 22], [0, 11, 12, 13, 14, 30], [4, 5, 3, 9, 10, 33]])
MASK = (IDS != 0).long()


def pair_config() -> ModelConfig:
    sizes = {"num_hidden_layers": 2, "positions": Rotary(), "decoder_start_token_id": 1}
    return make_config(**sizes, encoder=make_config(**sizes, causal=False))


def made(head, config=None):
    model = make_model(config or make_config(), head, torch.float32)
    model.initialise(seed=1)
    return model.eval()


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("count", [1, 2, 6, 9])
@torch.no_grad()
def test_hidden_states_are_whole_whatever_logits_are_kept(mask, count):
    causal, pair = made("causal"), made("seq2seq", pair_config())
    calls = (
        lambda **more: causal(IDS, mask, **more),
        lambda **more: pair(IDS, MASK, IDS, mask, **more),
    )
    for call in calls:
        whole = call(output_hidden_states=True)
        found = call(output_hidden_states=True, logits_to_keep=count)
        for one, other in zip(found.hidden_states, whole.hidden_states, strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(found.logits, whole.logits[:, -count:])
        torch.testing.assert_close(call(logits_to_keep=count).logits, found.logits)


def test_last_columns_stay_on_the_device_of_the_ids():
    # A device without data would show in any op, so a mask is what makes an index there.
    padding = Padding(torch.empty(2, 3, dtype=torch.int64, device="meta"))
    with pytest.raises(NotImplementedError, match="meta"):  # nonzero is never known there
        padding.last_columns(1)
    assert Padding(IDS).last_columns(1).tolist() == [5, 11, 17]


def forwards():
    for head in ("causal", "classification", "token-classification", "embedding"):
        yield head, made(head)
    yield "masked", made("masked", make_config(causal=False))
    pair = made("seq2seq", pair_config())
    whole = torch.ones(2, 3, dtype=torch.int64)
    yield "answers", lambda ids, mask=None: pair(whole[: len(ids)], None, ids, mask)
    yield "sources", lambda ids, mask=None: pair(ids, mask, whole[: len(ids)])
    yield "pair-classification", made("classification", pair_config())


@pytest.mark.parametrize("name", [name for name, _ in forwards()])
def test_rows_without_a_token_are_refused_in_one_sentence(name):
    forward = dict(forwards())[name]
    ids = torch.tensor([[3, 4], [5, 6]])
    with pytest.raises(RequestError, match=r"^Row 2 of the batch holds no token\.$"):
        forward(ids, torch.tensor([[0, 1], [0, 0]]))
    with pytest.raises(RequestError, match=r"^Row 1 of the batch holds no token\.$"):
        forward(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(RequestError, match="The batch holds no row"):
        forward(torch.zeros(0, 4, dtype=torch.int64))
    with pytest.raises(RequestError, match="expected rows of ids"):
        forward(torch.tensor([3, 4]))


@torch.no_grad()
def test_with_a_cache_a_row_may_bring_nothing():
    model = made("causal")
    cache = RowCache(model.config, 3, torch.float32)
    model(IDS[:, 0:3], MASK[:, 0:3], cache)
    found = model(IDS[:, 3:], MASK, cache, logits_to_keep=1).logits
    torch.testing.assert_close(found, model(IDS, MASK).logits[:, -1:])
    with pytest.raises(RequestError, match="holds no token"):
        model(IDS[:, :2], torch.zeros(3, 8, dtype=torch.int64), cache)
    with pytest.raises(RequestError, match="holds no row"):
        model(IDS[:0], None, cache)


def test_a_recurrence_has_no_longest_text():
    space = StateSpace(inner=80, state=4, rank=3)
    assert make_config(mixer="mamba", state_space=space).extrapolates
    assert not make_config().extrapolates


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        ("casual", 'Did you mean "causal"?'),
        ("reward", 'with labels=["reward"]'),
        ("zzz", "Known: causal, "),
        (["causal"], "There is no head"),
    ],
)
def test_an_unknown_head_is_refused_with_what_is_near(tmp_path, head, hint):
    with pytest.raises(RequestError) as error:
        make_model(make_config(), head)
    assert hint in str(error.value)
    save_checkpoint(tmp_path / "model", made("causal"))
    with pytest.raises(RequestError) as error:
        load_model(tmp_path / "model", head=head)
    assert hint in str(error.value)


def test_a_head_of_classes_has_some(tmp_path):
    save_checkpoint(tmp_path / "model", made("causal"))
    with pytest.raises(CheckpointError, match="labels is empty"):
        load_model(tmp_path / "model", head="classification", labels=[])
