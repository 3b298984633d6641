import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import CheckpointError
from hone.models.positions import (
    POSITIONS,
    Buckets,
    DynamicScaling,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rotary,
    YarnScaling,
    read_rope,
    write_rope,
)
from hone.models.rotary import SCALINGS
from hone.models.rotary_table import RotaryTable, rotary_frequencies

CONTEXT = 96


def long_scaling(size, **changes):
    pairs = (size + 1) // 2
    values = {
        "short_factor": tuple(1.0 + 0.05 * i for i in range(pairs)),
        "long_factor": tuple(1.5 + 0.7 * i for i in range(pairs)),
        "original_max_position_embeddings": 32,
    }
    return LongScaling(**(values | changes))


def scaling(kind, size=16):
    """Settings of every kind and of every branch; ``size`` is that of the rotated part."""
    return {
        "default": None,
        "linear": LinearScaling(2.5),
        "dynamic": DynamicScaling(3.0),
        "dynamic-odd-factor": DynamicScaling(1.3),
        "llama3": Llama3Scaling(8.0, 1.0, 4.0, 32),
        "yarn": YarnScaling(3.0, 32),
        "yarn-ratio": YarnScaling(None, 32),
        "yarn-shrunk": YarnScaling(None, 200),
        "yarn-options": YarnScaling(
            4.0, 24, beta_fast=20.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=1.1, truncate=False
        ),
        "yarn-mscale": YarnScaling(3.0, 32, mscale=0.7),
        "yarn-factor": YarnScaling(2.0, 48, attention_factor=1.21),
        "yarn-step": YarnScaling(2.0, 4),
        "longrope": long_scaling(size),
        "longrope-factor": long_scaling(size, factor=5.0),
        "longrope-attention": long_scaling(size, attention_factor=0.9),
        "longrope-shrunk": long_scaling(size, original_max_position_embeddings=100),
    }[kind]


KINDS = (
    "default",
    "linear",
    "dynamic",
    "dynamic-odd-factor",
    "llama3",
    "yarn",
    "yarn-ratio",
    "yarn-shrunk",
    "yarn-options",
    "yarn-mscale",
    "yarn-factor",
    "yarn-step",
    "longrope",
    "longrope-factor",
    "longrope-attention",
    "longrope-shrunk",
)


def their_rotary(rotary, head_dim, context=CONTEXT):
    """transformers' module for the same settings, as it reads what we write."""
    from transformers import AutoConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    # Llama turns whole heads; GPT-NeoX turns a part of each.
    whole = rotary.fraction == 1.0
    config = AutoConfig.for_model(
        "llama" if whole else "gpt_neox",
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=context,
        rope_parameters=write_rope(rotary),
    )
    return (LlamaRotaryEmbedding if whole else GPTNeoXRotaryEmbedding)(config)


def their_table(module, positions):
    cos, sin = module(torch.zeros(1), torch.as_tensor(positions)[None])
    pairs = cos.shape[-1] // 2
    return torch.stack((cos[0, :, :pairs], sin[0, :, :pairs]))


def our_table(rotary, head_dim, positions, length=None, context=CONTEXT, dtype=torch.float32):
    table = RotaryTable(rotary, head_dim, context)
    positions = torch.as_tensor(positions)
    lengths = torch.full_like(positions, int(positions.max()) + 1 if length is None else length)
    return table(positions, lengths if table.needs_lengths else None, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("head_dim", "fraction", "theta"),
    [(16, 1.0, 10000.0), (6, 1.0, 500000.0), (20, 0.4, 10000.0), (64, 0.25, 1e6), (80, 0.4, 5e2)],
)
def test_cosines_and_sines_are_those_of_transformers(kind, head_dim, fraction, theta):
    rotary = Rotary(theta, fraction, scaling(kind, int(head_dim * fraction)))
    module = their_rotary(rotary, head_dim)
    for length in (1, 17, 32, 33, 96, 97, 4001):
        positions = torch.arange(max(0, length - 40), length)
        ours = our_table(rotary, head_dim, positions)
        theirs = their_table(module, positions)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_an_odd_rotated_size_is_rounded_up():
    rotary = Rotary(fraction=0.3)
    assert rotary.rotated(18) == 6
    positions = torch.arange(200)
    theirs = their_table(their_rotary(rotary, 18), positions)
    torch.testing.assert_close(our_table(rotary, 18, positions), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_frequencies_are_those_of_transformers(kind):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = Rotary(scaling=scaling(kind))
    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters=write_rope(rotary),
    )
    initial = ROPE_INIT_FUNCTIONS[rotary.scaling.kind]
    for length in (1, 32, 33, 96, 97, 1000):
        theirs, their_factor = initial(config, "cpu", seq_len=torch.tensor(length))
        ours, factor = rotary_frequencies(rotary, 16, CONTEXT, length)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-7)
        assert math.isclose(factor, their_factor, rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["dynamic", "dynamic-odd-factor", "longrope"])
@pytest.mark.parametrize("prompt", [1, 20, 31, 95, 140])
def test_a_growing_sequence_turns_as_in_transformers(kind, prompt):
    rotary = Rotary(scaling=scaling(kind))
    module, table = their_rotary(rotary, 16), RotaryTable(rotary, 16, CONTEXT)
    assert table.needs_lengths
    start = 0
    for length in (prompt, *range(prompt + 1, prompt + 12), prompt + 300):
        positions = torch.arange(start, length)
        ours = table(positions, torch.full_like(positions, length), torch.float32)
        torch.testing.assert_close(ours, their_table(module, positions), atol=1e-6, rtol=0)
        start = length
    short = torch.arange(7)  # another sequence after it begins anew
    ours = table(short, torch.full_like(short, 7), torch.float32)
    torch.testing.assert_close(ours, their_table(module, short), atol=1e-6, rtol=0)


@given(st.sampled_from(KINDS), st.lists(st.integers(1, 260), min_size=1, max_size=6), st.booleans())
def test_a_token_turns_the_same_whatever_is_beside_it(kind, lengths, decoding):
    rotary = Rotary(scaling=scaling(kind))
    table = RotaryTable(rotary, 16, CONTEXT)
    spans = [torch.arange(n - 1 if decoding else 0, n) for n in lengths]
    counts = torch.tensor([len(span) for span in spans])
    together = table(
        torch.cat(spans), torch.tensor(lengths).repeat_interleave(counts), torch.float32
    )
    alone = [
        table(span, torch.full_like(span, n), torch.float32)
        for span, n in zip(spans, lengths, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_many_lengths_at_once_turn_as_each_alone():
    # Vector instructions begin at some count, and round powers otherwise than one at a time.
    table = RotaryTable(Rotary(scaling=DynamicScaling(3.0)), 16, CONTEXT)
    lengths = torch.arange(CONTEXT - 3, CONTEXT + 60)
    together = table(lengths - 1, lengths, torch.float32)
    alone = [table(n - 1, n, torch.float32) for n in lengths.split(1)]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_only_what_grows_with_a_sequence_asks_for_its_length():
    asking = {
        kind for kind in KINDS if RotaryTable(Rotary(scaling=scaling(kind)), 16, 9).needs_lengths
    }
    assert asking == {kind for kind in KINDS if kind.startswith(("dynamic", "longrope"))}


@pytest.mark.smoke
def test_the_default_is_the_formula():
    table = our_table(Rotary(100.0), 8, [0, 3, 50])
    for column, position in enumerate((0, 3, 50)):
        for pair in range(4):
            angle = position * 100.0 ** (-pair / 4)
            assert math.isclose(table[0, column, pair], math.cos(angle), abs_tol=1e-5)
            assert math.isclose(table[1, column, pair], math.sin(angle), abs_tol=1e-5)


def test_bf16_is_rounded_after_the_factor():
    rotary = Rotary(scaling=scaling("yarn"))
    full = our_table(rotary, 16, range(50))
    half = our_table(rotary, 16, range(50), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())
    assert full.abs().max() > 1.1  # 0.1 · ln 3 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_constants_are_real_under_a_meta_device(kind):
    rotary = Rotary(scaling=scaling(kind))
    with torch.device("meta"):
        table = RotaryTable(rotary, 16, CONTEXT)
    positions = torch.arange(200)
    ours = table(positions, torch.full_like(positions, 200), torch.float32)
    assert torch.equal(ours, our_table(rotary, 16, positions))
    if not isinstance(rotary.scaling, DynamicScaling):  # which reads the lengths
        nowhere = positions.to("meta")
        assert table(nowhere, nowhere, torch.float32).shape == (2, 200, 8)
        assert torch.equal(ours, our_table(rotary, 16, positions))


# Files.

numbers = st.floats(0.5, 1000.0)
contexts = st.integers(2, 10**6)
maybe = st.none() | numbers
lists = st.lists(numbers, min_size=1, max_size=5).map(tuple)
rotaries = st.builds(
    Rotary,
    theta=st.floats(1.5, 1e8) | st.integers(2, 10**7),
    fraction=st.floats(0.05, 1.0) | st.just(1),
    scaling=st.none()
    | st.builds(LinearScaling, numbers)
    | st.builds(DynamicScaling, numbers)
    | st.builds(
        YarnScaling,
        maybe,
        contexts,
        st.floats(16, 64),
        st.floats(0.5, 8),
        maybe,
        maybe,
        maybe,
        st.booleans(),
    )
    | st.builds(Llama3Scaling, numbers, st.floats(0.5, 2), st.floats(2.5, 9), contexts)
    | st.builds(LongScaling, lists, lists, contexts, maybe, maybe),
)


@given(rotaries, st.sampled_from([1.0, 0.25]))
def test_what_is_written_is_read_back(rotary, fraction_default):
    rope = json.loads(json.dumps(write_rope(rotary, fraction_default)))
    for values in ({"rope_parameters": rope}, {"rope_scaling": rope}):
        assert read_rope(values, "c", 7.0, None, fraction_default) == rotary
    nested = {"rope_parameters": {"full_attention": rope, "sliding_attention": None}}
    assert read_rope(nested, "c", 7.0, "full_attention", fraction_default) == rotary
    assert read_rope(nested, "c", 7.0, "sliding_attention") == Rotary(7.0)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_keeps_what_we_write(kind):
    rope = write_rope(Rotary(5e5, scaling=scaling(kind)))
    assert their_rotary(Rotary(5e5, scaling=scaling(kind)), 16).config.rope_parameters == rope


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {}),
        ("llama", {"rope_theta": 5e5}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4}}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "type": "linear", "factor": 4}}),
        ("llama", {"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 5e5}),
        ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}),
        ("llama", {"rope_parameters": None, "rope_scaling": None, "rope_theta": 2e4}),
        (
            "llama",
            {
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
                "rope_scaling": {"rope_type": "linear", "factor": 3.0},
            },
        ),
        ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "original_max_position_embeddings": 16,
                    **LLAMA3,
                },
                "original_max_position_embeddings": 24,
            },
        ),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}}),
        ("gpt_neox", {}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 2e4}),
        ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 1.0}),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 3e4}}),
        ("phi3", {"rope_scaling": None, "partial_rotary_factor": 0.5}),
        (
            "phi3",
            {
                "rope_scaling": {
                    "type": "su",
                    "original_max_position_embeddings": 32,
                    **FACTORS,
                },
                "original_max_position_embeddings": 32,
                "rope_theta": 3e4,
            },
        ),
        (
            "phi3",
            {
                "rope_scaling": {"type": "yarn", **FACTORS},
                "original_max_position_embeddings": 32,
            },
        ),
        (
            "phi3",
            {
                "rope_parameters": {"rope_type": "longrope", **FACTORS},
                "original_max_position_embeddings": 200,
            },
        ),
    ],
)
def test_files_old_and_new_are_read_as_transformers_reads_them(family, values):
    from transformers import AutoConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
    rotary = read_rope(
        json.loads(json.dumps(values | sizes)),
        "config.json",
        fraction_default=0.25 if family == "gpt_neox" else 1.0,
    )
    config = AutoConfig.for_model(family, **json.loads(json.dumps(values)), **sizes)
    # The module that heeds a partial factor: the settings are what is compared.
    module = GPTNeoXRotaryEmbedding(config)
    for length in (20, 150):
        positions = torch.arange(length)
        ours = our_table(rotary, 8, positions)
        torch.testing.assert_close(ours, their_table(module, positions), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("gemma3_text", {}),
        ("gemma3_text", {"rope_theta": 2e6, "rope_local_base_freq": 2e4}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
                },
            },
        ),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_theta": 5e4}}}),
        ("modernbert", {}),
        ("modernbert", {"global_rope_theta": 5e5, "local_rope_theta": 3e4}),
        (
            "modernbert",
            {
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "yarn",
                        "factor": 2.0,
                        "original_max_position_embeddings": 48,
                    },
                },
                "original_max_position_embeddings": 24,
            },
        ),
    ],
)
def test_layers_of_two_types_have_settings_of_their_own(family, values):
    from transformers import AutoConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 7,
        "max_position_embeddings": CONTEXT,
    }
    config = AutoConfig.for_model(family, **json.loads(json.dumps(values)), **sizes)
    if family == "gemma3_text":
        config.head_dim = 8
    module = Gemma3RotaryEmbedding(config)
    for layer_type, key in (("full_attention", "global"), ("sliding_attention", "local")):
        default = type(config).default_theta[key]
        rotary = read_rope(values | sizes, "config.json", default, layer_type)
        positions = torch.arange(150)
        cos, sin = module(torch.zeros(1), positions[None], layer_type)
        theirs = torch.stack((cos[0, :, :4], sin[0, :, :4]))
        ours = our_table(rotary, 8, positions)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "layer_type", "expected"),
    [
        (
            {"rope_parameters": {"rope_type": "spiral"}},
            None,
            "rope_type is 'spiral'; hone computes default, linear, dynamic, yarn, llama3, longrope",
        ),
        ({"rope_scaling": {"type": ["yarn"]}}, None, "rope_type is"),
        ({"rope_parameters": {"rope_type": "llama3"}}, None, "'llama3' needs the key 'factor'"),
        ({"rope_scaling": {"type": "linear"}}, None, "'linear' needs the key 'factor'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            None,
            "'yarn' needs the key 'original_max_position_embeddings'",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
            None,
            "'longrope' needs the key 'long_factor'",
        ),
        ({"rope_parameters": 3}, None, "rope_parameters are 3; expected an object"),
        ({"rope_scaling": [1]}, None, "expected an object"),
        ({"rope_theta": "big"}, None, "rope_theta is 'big'"),
        ({"rope_theta": True}, None, "rope_theta is True"),
        ({"rope_theta": 1}, None, "rope_theta is 1"),
        ({"rope_theta": math.nan}, None, "rope_theta is nan"),
        ({"partial_rotary_factor": 1.5}, None, "partial_rotary_factor is 1.5"),
        ({"rotary_pct": 0}, None, "partial_rotary_factor is 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, None, "factor is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, None, "factor is None"),
        ({"rope_scaling": {"type": "dynamic", "factor": -1}}, None, "factor is -1"),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3}, "max_position_embeddings": 1.5},
            None,
            "original_max_position_embeddings is 1.5",
        ),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            None,
            "high_freq_factor must be the larger",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 0.5}},
            None,
            "beta_fast must be the larger",
        ),
        (
            {"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0, "x"]}},
            None,
            "long_factor is (1.0, 'x'); it must be a list of positive numbers",
        ),
        (
            {"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": 2.0}},
            None,
            "long_factor is 2.0; it must be a list",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "no"}},
            None,
            "truncate is 'no'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            None,
            "settings for full_attention",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}},
            "sliding_attention",
            "expected an object for each type of layer, such as 'sliding_attention'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "spiral"}}},
            "full_attention",
            "rope_type is 'spiral'",
        ),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": 5}},
            "sliding_attention",
            "expected an object",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_sentence(values, layer_type, expected):
    values = {"max_position_embeddings": None if "'original_max" in expected else 64} | values
    with pytest.raises(CheckpointError, match=re.escape(expected)) as error:
        read_rope(values, "somewhere/config.json", layer_type=layer_type)
    assert str(error.value).startswith("somewhere/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rotary", "head_dim", "expected"),
    [
        (Rotary(), 7, "head_dim is 7"),
        (Rotary(fraction=0.1), 8, "0 dimensions of a head turn"),
        (Rotary(scaling=DynamicScaling(2.0)), 2, "an even number from 4"),
        (Rotary(scaling=long_scaling(8)), 16, "short_factor has 4 numbers; .* need 8"),
    ],
)
def test_heads_that_cannot_be_turned_are_refused(rotary, head_dim, expected):
    for compute in (rotary.rotated, lambda size: RotaryTable(rotary, size, 64)):
        with pytest.raises(CheckpointError, match=expected):
            compute(head_dim)


def test_every_choice_has_its_name():
    assert list(POSITIONS) == ["rotary", "learned", "sinusoidal", "alibi", "buckets", "none"]
    for name, choice in POSITIONS.items():
        assert choice().name == name
        assert choice() == choice()
        assert hash(choice()) == hash(choice())
    assert list(SCALINGS) == ["linear", "dynamic", "yarn", "llama3", "longrope"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Learned(-1), "offset is -1"),
        (lambda: Buckets(3), "count is 3"),
        (lambda: Buckets(32, 16), "max_distance is 16; it must be a whole number of 17 or more"),
        (lambda: Buckets(True), "count is True"),
    ],
)
def test_choices_that_cannot_be_are_refused(make, expected):
    with pytest.raises(CheckpointError, match=expected):
        make()
