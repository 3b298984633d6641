"""Decoders with mixtures of experts: Mixtral, Qwen2-MoE and Qwen3-MoE."""

from dataclasses import replace

import pytest
import torch
from interop import IDS, MASK, SIZES, TEXTS, CausalInterop, call, make_pack

from hone.core.errors import CheckpointError
from hone.models import CausalLM, Experts, load_model, read_config, save_checkpoint, write_config

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


class MixtureInterop(CausalInterop):
    """Their loss has the balancing term only where the router's logits are output."""

    steps = 8  # past every window

    def make(self, changes, **options):
        # Their usual way to compute experts takes only sizes that are multiples of 4.
        return super().make(changes, experts_implementation="eager", **options)

    def test_loss_and_gradients(self, pair, case, tmp_path):
        # The term is no sum over texts, so all of them are one padded batch of theirs.
        theirs = self.make(self.cases[case] | {"output_router_logits": True})
        ours = load_model(pair[2]).train()
        count, longest = sum(len(text) - 1 for text in TEXTS), max(map(len, TEXTS))
        loss = ours.packed_loss(make_pack(TEXTS))
        loss.backward()
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in TEXTS])
        mask = (torch.arange(longest) < torch.tensor([[len(text)] for text in TEXTS])).long()
        labels = ids.masked_fill(mask == 0, -100)
        expected = theirs(ids, attention_mask=mask, labels=labels)
        assert theirs.router_aux_loss_coef * expected.aux_loss > 0.1  # it counts
        expected.loss.backward()
        self.close(loss / count, expected.loss.detach())
        for parameter in theirs.parameters():
            if parameter.grad is not None:
                parameter.grad *= count
        self.compare_gradients(theirs, ours, tmp_path, count)

    def test_rows_do_not_influence_one_another(self, pair):
        _, ours, _ = pair
        with torch.no_grad():
            whole = ours(IDS, MASK).logits
            for row, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
                alone = ours(ids[mask.bool()][None]).logits[0]
                self.close(whole[row, mask.bool()], alone, 1e-5)


class TestMixtral(MixtureInterop):
    family = "mixtral"
    cases = {
        "usual": {"num_local_experts": 5, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.7},
        "windowed": {
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            "sliding_window": 4,
            "head_dim": 14,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "router_aux_loss_coef": 0.3,
            "router_jitter_noise": 0.2,
        },
    }


QWEN = {"moe_intermediate_size": 18, "num_experts_per_tok": 3, "router_aux_loss_coef": 0.5}


class TestQwen2Moe(MixtureInterop):
    family = "qwen2_moe"
    cases = {
        "usual": QWEN | {"num_experts": 7, "shared_expert_intermediate_size": 22},
        "sparse": QWEN
        | {
            "num_experts": 5,
            "shared_expert_intermediate_size": 56,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        "listed": QWEN
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 6,
            "mlp_only_layers": [0],
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": YARN,
        },
    }


class TestQwen3Moe(MixtureInterop):
    family = "qwen3_moe"
    cases = {
        "usual": QWEN | {"num_experts": 7, "head_dim": 14, "norm_topk_prob": True},
        "sparse": QWEN
        | {
            "num_local_experts": 3,
            "mlp_only_layers": [2],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    }


TESTS = {test.family: test for test in (TestMixtral, TestQwen2Moe, TestQwen3Moe)}
CASES = [
    pytest.param(family, changes, id=f"{family}-{name}")
    for family, test in TESTS.items()
    for name, changes in test.cases.items()
]


def their_config(family, values):
    import transformers

    values = {key: value for key, value in values.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(family, **values)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_a_config_of_our_own_says_the_same_there(family, changes):
    config = read_config(their_config(family, SIZES | changes).to_dict())
    bare = write_config(replace(config, extra={}))
    assert read_config(their_config(family, bare).to_dict()) == config


@pytest.mark.parametrize("family", TESTS)
def test_what_a_file_does_not_say_is_as_the_family_has_it(family):
    few = {"model_type": family, "vocab_size": 99, "hidden_size": 64, "intermediate_size": 80}
    few |= {"num_hidden_layers": 3, "num_attention_heads": 32, "use_sliding_window": True}
    assert read_config(few) == read_config(their_config(family, few).to_dict())


@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("mixtral", {"rope_theta": 1e6, "torch_dtype": "bfloat16", "router_aux_loss_coef": 0.02}),
        ("mixtral", {"num_experts": 4, "sliding_window": 4096, "router_aux_loss_coef": 0.0}),
        (
            "qwen2_moe",
            {
                "rope_theta": 1e6,
                "sliding_window": 32768,
                "max_window_layers": 21,
                "num_experts": 60,
                "shared_expert_intermediate_size": 5632,
            },
        ),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("qwen2_moe", {"mlp_only_layers": None, "decoder_sparse_step": 3, "head_dim": 14}),
        (
            "qwen3_moe",
            {
                "rope_theta": 1e6,
                "rope_scaling": YARN,
                "head_dim": 128,
                "num_experts": 128,
                "norm_topk_prob": True,
                "max_window_layers": 48,
                "sliding_window": None,
            },
        ),
    ],
)
def test_older_files_are_read_as_they_read_them(family, old):
    values = SIZES | {"model_type": family} | old
    assert read_config(values) == read_config(their_config(family, values).to_dict())


def test_which_layers_are_plain_is_said_as_it_was_read_until_it_changes():
    said = {"decoder_sparse_step": 2, "mlp_only_layers": [3, 9]}
    values = SIZES | {"model_type": "qwen2_moe", "num_hidden_layers": 6} | said
    config = read_config(values)
    assert config.experts.layers == (1, 5)
    assert said.items() <= write_config(config).items()
    other = write_config(replace(config, experts=replace(config.experts, layers=(0, 5))))
    assert (other["decoder_sparse_step"], other["mlp_only_layers"]) == (1, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("mixtral", {"num_local_experts": 0}, "num_local_experts is 0; expected 1 or more"),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 5}, "expected 1 to 4"),
        ("mixtral", {"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ("mixtral", {"num_experts_per_tok": 2.0}, r"num_experts_per_tok is 2\.0"),
        ("mixtral", {"router_aux_loss_coef": -1.0}, r"balance of the experts is -1\.0"),
        ("mixtral", {"router_aux_loss_coef": "none"}, "router_aux_loss_coef is 'none'"),
        ("qwen2_moe", {"num_experts": 3}, "num_experts_per_tok is 4; expected 1 to 3, the num_exp"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "expected 1 or more"),
        ("qwen2_moe", {"moe_intermediate_size": -4}, "moe_intermediate_size is -4"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0; expected 1 or more"),
        ("qwen2_moe", {"mlp_only_layers": 3}, "mlp_only_layers is 3; expected a list"),
        ("qwen2_moe", {"mlp_only_layers": ["0"]}, "a list of the numbers of layers"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 3}, "a sliding_window for it"),
        ("qwen3_moe", {"num_experts": 4}, "num_experts_per_tok is 8"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob is 1; expected true or false"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_sentence(family, changes, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config(SIZES | {"model_type": family} | changes, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", TESTS)
@pytest.mark.parametrize("auto_class", ["AutoModelForSequenceClassification", "AutoModel"])
def test_other_heads_and_bare_bodies(family, auto_class, tmp_path):
    class Test(TESTS[family]):
        pass

    Test.auto_class = auto_class
    theirs = Test().make(Test.cases["usual"] | {"num_labels": 3})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", ours)
    again = type(theirs).from_pretrained(tmp_path / "ours", experts_implementation="eager").eval()
    with torch.no_grad():
        expected = call(theirs, IDS, MASK, output_hidden_states=True)
        found = ours(IDS, MASK, output_hidden_states=True)
        twice = call(again, IDS, MASK, output_hidden_states=True)
    real = MASK.bool()
    for mine, original in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], original[real], atol=1e-4, rtol=1e-4)
    if auto_class != "AutoModel":
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    for before, after in zip(expected.hidden_states, twice.hidden_states, strict=True):
        torch.testing.assert_close(after[real], before[real], atol=1e-5, rtol=1e-5)


def model_of(**changes):
    config = read_config(SIZES | {"model_type": "mixtral", "num_local_experts": 4})
    model = CausalLM(replace(config, experts=replace(config.experts, **changes)))
    model.initialise(seed=0)
    return model.train()


def test_balance_counts_tokens_without_a_label_in_every_layer():
    batch = make_pack(TEXTS)
    batch.labels_N[:-3] = -100
    losses = [model_of(balance=balance).packed_loss(batch) for balance in (0.0, 1.0)]
    logits = []
    model_of().decoder(batch.input_ids_N, batch.position_ids_N, packed(batch), router_logits=logits)
    assert [len(layer) for layer in logits] == [18] * 3
    every = torch.cat(logits).softmax(-1)
    share = torch.nn.functional.one_hot(every.topk(2).indices, 4).sum(1).float().mean(0)
    labels = int((batch.labels_N != -100).sum())
    assert labels == 2
    expected = labels * 4 * (share * every.mean(0)).sum()
    torch.testing.assert_close(losses[1] - losses[0], expected)


def packed(batch):
    from hone.models.context import Packed

    return Packed.of(batch.cu_seqlens.diff().tolist())


def test_the_z_loss_is_added_to_the_balance():
    batch = make_pack(TEXTS)
    plain, more = (model_of(router_z=z).packed_loss(batch) for z in (0.0, 0.5))
    labels = int((batch.labels_N != -100).sum())
    # Fresh routers score all experts near 0, so log(4 · exp(0))² is what it begins at.
    torch.testing.assert_close(
        (more - plain) / labels, 0.5 * torch.tensor(4.0).log() ** 2, atol=0.05, rtol=0.05
    )


def test_balance_spreads_the_load():
    model = model_of(balance=1.0)
    gates = [block.mlp.gate.weight for block in model.decoder.layers]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # what tokens have in common speaks for the first two experts
        model.embedding.weight.normal_(0.7, 1.0, generator=generator)
        for gate in gates:
            gate[:2] += 0.05
    ids = torch.arange(3, 61)
    batch = make_pack([ids.tolist()])

    def unevenness():
        logits = []
        with torch.no_grad():
            model.decoder(ids, batch.position_ids_N, packed(batch), router_logits=logits)
        chosen = torch.cat(logits).topk(2).indices
        return chosen.flatten().bincount(minlength=4).float().std()

    assert unevenness() > 80
    optimizer = torch.optim.SGD(gates, lr=0.1)
    for _ in range(20):
        (model.packed_loss(batch) / len(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert unevenness() < 20


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"per_token": 5}, {"size": 0}, {"shared_size": -1}, {"router_z": -1}]
)
def test_experts_that_cannot_be_are_refused(changes):
    with pytest.raises(CheckpointError, match="expert") as error:
        Experts(**({"count": 4, "per_token": 2, "size": 8} | changes))
    assert "\n" not in str(error.value)
