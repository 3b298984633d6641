"""A sample in a pack is computed as if it were alone, whatever mixes its tokens."""

from itertools import pairwise

import pytest
import torch

from hone.data import Sample, pack
from hone.kernels import PackedLayout
from hone.models import (
    Alibi,
    Buckets,
    CausalLM,
    Learned,
    MaskedLM,
    ModelConfig,
    Packed,
    Seq2SeqLM,
    StateSpace,
    read_config,
)
from hone.train import TensorBatch

VOCABULARY = 40
LENGTHS = (9, 1, 17, 4, 9, 2)
MIXERS = {
    "rotary": {},
    "window": {"sliding_window": 3},
    "window in one layer": {"sliding_window": 2, "sliding_layers": (1,)},
    "alibi": {"positions": Alibi()},
    "buckets": {"positions": Buckets(8, 6)},
    "learned": {"positions": Learned()},
    "softcap": {"attention_softcap": 5.0},
    "mamba": {"mixer": "mamba", "state_space": StateSpace(inner=32, state=4, rank=2)},
    "mamba2": {
        "mixer": "mamba2",
        "state_space": StateSpace(inner=32, state=4, heads=4, groups=2),
    },
}


def make(kind, config):
    model = kind(config)
    model.initialise(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # attention that is far from a mean
    return model.eval()


def config_of(causal, **changes):
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.1,
        causal=causal,
        **changes,
    )


def texts(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def check_alone(model, samples):
    """Logits of the pack, with and without a graph, against each sample by itself."""
    batch = TensorBatch.of(pack(samples))
    bounds = batch.cu_seqlens.tolist()
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            hidden = model.decoder(
                batch.input_ids_N, batch.position_ids_N, Packed(PackedLayout(batch.cu_seqlens))
            )
            together = model.logits(hidden)
        for start, end in pairwise(bounds):
            alone = model(batch.input_ids_N[None, start:end]).logits[0]
            torch.testing.assert_close(together[start:end], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_logits_of_causal_models(mixer):
    model = make(CausalLM, config_of(True, **MIXERS[mixer]))
    check_alone(model, [Sample(text, text) for text in texts()])


@pytest.mark.parametrize("mixer", ["rotary", "window", "buckets", "learned", "softcap"])
def test_logits_of_models_that_see_both_sides(mixer):
    model = make(MaskedLM, config_of(False, **MIXERS[mixer]))
    check_alone(model, [Sample(text, text) for text in texts()])


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_gradient_goes_to_a_neighbour(mixer):
    """Only the sample in the middle is scored: tokens that only others have get no gradient."""
    model = make(CausalLM, config_of(True, **MIXERS[mixer]))
    before, scored, after = [[t % 10 + base for t in range(9)] for base in (0, 15, 28)]
    batch = pack(
        [
            Sample(before, [-100] * 9),
            Sample(scored[:-1] * 2, scored[1:] * 2),
            Sample(after * 3, [-100] * 27),
        ]
    )
    model.packed_loss(TensorBatch.of(batch)).backward()
    gradient = model.embedding.weight.grad.abs().sum(-1)
    assert (gradient[15:23] > 0).all()
    assert gradient[:15].sum() == 0
    assert gradient[28:].sum() == 0


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_answers_see_their_own_sources_only(family):
    sizes = {
        "t5": {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
        "bart": {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 32,
        },
    }[family]
    ids = {"decoder_start_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = read_config({"model_type": family, "vocab_size": VOCABULARY} | sizes | ids)
    model = make(Seq2SeqLM, config)
    samples = [
        Sample(answer, answer[::-1], source=source)
        for answer, source in zip(texts(), texts((3, 12, 5, 20, 1, 7), 1), strict=True)
    ]

    def loss(samples):
        return model.packed_loss(TensorBatch.of(pack(samples)))

    alone = [loss([sample]).item() for sample in samples]
    assert loss(samples).item() == pytest.approx(sum(alone), rel=1e-5)
    for parts in (2, 3):
        split = [model.packed_loss(TensorBatch.of(p)).item() for p in pack(samples).split(parts)]
        assert sum(split) == pytest.approx(sum(alone), rel=1e-5)
    # And what the pack says is what the padded forward pass says.
    first = samples[0]
    logits = model(torch.tensor([first.source]), decoder_input_ids=torch.tensor([first.ids])).logits
    expected = torch.nn.functional.cross_entropy(
        logits[0], torch.tensor(first.labels), reduction="sum"
    )
    assert alone[0] == pytest.approx(expected.item(), rel=1e-4)
