import json

import pytest
import torch
from small_llama import make_config

from hone.core.errors import CheckpointError
from hone.models import Embedder, load_config, load_model, save_checkpoint
from hone.models.readers import pool

IDS = torch.tensor([[7, 8, 22, 41], [11, 12, 0, 0], [5, 0, 0, 0]])
MASK = (IDS != 0).long()
OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules.pooling."


@pytest.fixture
def checkpoint(tmp_path):
    """A directory of embeddings, and a function that changes one of its files."""
    model = Embedder(make_config(), dtype=torch.float32)
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "model", model)

    def change(name, value):
        file = tmp_path / "model" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(value if isinstance(value, str) else json.dumps(value))

    return tmp_path / "model", change


def modules(*kinds, prefix=OLD):
    paths = {"Transformer": "", "Normalize": "2_Normalize"}
    return [
        {"idx": n, "name": str(n), "path": paths.get(kind, f"{n}_{kind}"), "type": prefix + kind}
        for n, kind in enumerate(kinds)
    ]


def flags(chosen):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    return {f"pooling_mode_{name}": name == chosen for name in names}


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (flags("cls_token"), "cls"),
        (flags("mean_tokens"), "mean"),
        (flags("lasttoken"), "last"),
        ({"word_embedding_dimension": 40}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 40}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
@pytest.mark.parametrize("unit_length", [True, False])
def test_pooling_is_read_and_written(checkpoint, pooling, expected, unit_length, tmp_path):
    folder, change = checkpoint
    prefix = OLD if "pooling_mode" not in pooling else NEW
    steps = ("Transformer", "Pooling", "Normalize")[: 3 if unit_length else 2]
    change("modules.json", modules(*steps, prefix=prefix))
    change("1_Pooling/config.json", pooling)
    model = load_model(folder)
    with torch.no_grad():
        found = model(IDS, MASK, output_hidden_states=True)
        hidden = found.hidden_states[-1]
        by_hand = {
            "cls": hidden[:, 0],
            "last": hidden[torch.arange(3), MASK.sum(-1) - 1],
            "mean": (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True),
        }[expected]
    if unit_length:
        by_hand = by_hand / by_hand.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.logits, by_hand)
    save_checkpoint(tmp_path / "again", model)
    again = load_model(tmp_path / "again")
    assert again.config == model.config
    assert again.config.embedding_pooling == expected
    with torch.no_grad():
        assert torch.equal(again(IDS, MASK).logits, found.logits)


def test_a_directory_that_pools_is_one_of_embeddings(checkpoint):
    folder, change = checkpoint
    values = json.loads((folder / "config.json").read_text())
    # Trained on top of a language model, whose name stayed while its head did not.
    change("config.json", values | {"architectures": ["LlamaForCausalLM"]})
    assert load_model(folder).head == "embedding"
    assert load_config(folder, "causal").head == "causal"
    with pytest.warns(UserWarning, match="score.weight are new"):
        assert load_model(folder, head="classification").head == "classification"


def test_a_cross_encoder_has_steps_but_no_pooling(checkpoint):
    folder, change = checkpoint
    change("modules.json", modules("Transformer"))
    change("1_Pooling/config.json", "{")
    assert load_config(folder).embedding_pooling == "last"


@pytest.mark.parametrize(
    ("file", "value", "expected"),
    [
        ("modules.json", "{", r"modules.json, line 1: not valid JSON"),
        ("modules.json", {"0": "Pooling"}, r"modules.json: expected a JSON list"),
        ("modules.json", ["Pooling"], r"modules.json: expected a list of objects with a 'type'"),
        (
            "modules.json",
            modules("Transformer", "Pooling", "Dense"),
            r"the steps are Transformer, Pooling, Dense; hone computes",
        ),
        (
            "modules.json",
            [modules("Transformer")[0], {"type": OLD + "Pooling", "path": "../elsewhere"}],
            r"names '../elsewhere', which lies outside",
        ),
        ("1_Pooling/config.json", flags("max_tokens"), r"the pooling is \['max'\]"),
        (
            "1_Pooling/config.json",
            flags("cls_token") | {"pooling_mode_mean_tokens": True},
            r"the pooling is \['cls', 'mean'\]; hone computes one of cls, mean, lasttoken",
        ),
        ("1_Pooling/config.json", {"pooling_mode": 3}, r"the pooling is 3"),
        ("1_Pooling/config.json", [], r"config.json: expected a JSON object"),
    ],
)
def test_what_cannot_be_computed_is_said(checkpoint, file, value, expected):
    folder, change = checkpoint
    change(file, value)
    with pytest.raises(CheckpointError, match=expected) as error:
        load_config(folder)
    assert str(error.value).startswith(str(folder))
    # Who does not want embeddings need not care.
    with pytest.warns(UserWarning, match="are new"):
        load_model(folder, head="classification")


def test_a_missing_pooling_file_is_named(checkpoint):
    folder, _ = checkpoint
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json does not exist"):
        load_config(folder)


def test_means_of_bfloat16_add_up_in_float32():
    hidden = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    assert torch.equal(pool(hidden, [4096], "mean"), hidden[:1])
