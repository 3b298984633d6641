import pytest
from small_llama import make_config, make_model

from hone.core.errors import CheckpointError
from hone.models import Rotary, read_config, write_config
from hone.models.positions import Llama3Scaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_what_we_write_is_what_transformers_writes(tmp_path):
    from transformers import LlamaConfig as TheirConfig

    config = make_config(eos_token_id=(2, 5), bos_token_id=1, pad_token_id=0)
    theirs = TheirConfig(**write_config(config)).to_dict()
    for key, value in write_config(config).items():
        if key not in ("architectures", "transformers_version"):
            assert theirs[key] == value, key
    assert read_config(write_config(config)) == config


def test_old_and_new_layouts_say_the_same():
    new = make_config(
        positions=Rotary(5e5, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)), dtype="bfloat16"
    )
    old = write_config(new)
    del old["rope_parameters"], old["dtype"]
    old |= {"rope_theta": 5e5, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"}
    assert read_config(old) == read_config(write_config(new)) == new


def test_sizes_left_out_are_derived():
    config = read_config(
        {
            "model_type": "llama",
            "vocab_size": 10,
            "hidden_size": 12,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
        }
    )
    assert (config.num_key_value_heads, config.head_dim, config.dtype) == (3, 4, "float32")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "rwkv"}, "model_type is 'rwkv'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu9"}, "hidden_act is 'gelu9'"),
        ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "needs the key 'factor'"),
        ({"rope_parameters": 3}, "expected an object"),
        ({"vocab_size": None}, "the key 'vocab_size' is missing"),
        ({"vocab_size": "big"}, "vocab_size is 'big'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"hidden_size": 42, "head_dim": None}, "no multiple of num_attention_heads"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_sentence(changes, expected):
    values = write_config(make_config()) | changes
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config(values, "somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_parameter_count_is_that_of_the_model(changes):
    model = make_model(**changes)
    assert model.config.parameter_count == sum(p.numel() for p in model.parameters())
