import pytest
import torch
from interop import CausalInterop

from hone.engine.cache import RowCache
from hone.models import CausalLM, ModelConfig, StateSpace


class StateSpaceInterop(CausalInterop):
    tolerance = 1e-3

    def hidden_pairs(self, ours, theirs):
        # Theirs begin after the first block, and have the last one before its norm as well.
        assert len(ours) == len(theirs)
        return [*zip(ours[1:-1], theirs, strict=False), (ours[-1], theirs[-1])]

    def make(self, changes, **options):
        model = super().make(changes, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("A_log", "conv1d.weight")):
                    parameter.mul_(0.5).add_(0.3)
        return model


class TestMamba(StateSpaceInterop):
    family = "mamba"
    sizes = {
        "vocab_size": 61,
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "state_size": 7,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    padding_leaks = ("biased",)  # through the bias of in_proj and the convolution
    cases = {
        "tied": {},
        "biased": {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5},
        "narrow": {"conv_kernel": 2, "expand": 1, "tie_word_embeddings": False},
    }


class TestMamba2(StateSpaceInterop):
    family = "mamba2"
    sizes = {
        "vocab_size": 61,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "state_size": 9,
        "num_heads": 6,
        "head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    padding_leaks = ("biased",)
    cases = {
        "untied": {},
        "biased": {"tie_word_embeddings": True, "use_bias": True, "n_groups": 1},
        "limited": {"time_step_limit": [0.01, 0.5], "conv_kernel": 3, "n_groups": 6},
    }


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_memory_of_a_sequence_does_not_grow(mixer):
    space = StateSpace(32, 8, rank=2) if mixer == "mamba" else StateSpace(32, 8, heads=4)
    config = ModelConfig(50, 16, 32, 2, mixer=mixer, state_space=space)
    model = CausalLM(config).eval()
    model.initialise(seed=0)
    cache = RowCache(config, 2, torch.float32)
    sizes = []
    with torch.no_grad():
        for count in (40, 1, 1, 30):
            model(torch.ones(2, count, dtype=torch.int64), cache=cache)
            state = [t for layer in range(2) for t in cache.state(layer)]
            sizes.append(sum(t.numel() for t in state))
            # What a state is a view of is no larger than a few states.
            assert sum(t.untyped_storage().nbytes() for t in state) < 8 * sizes[-1]
    assert len(set(sizes)) == 1
