"""The plan of a run before it begins."""

import pytest

from hone.core.errors import CapacityError
from hone.data import PackedBatches, completion_sample
from hone.models import ModelConfig
from hone.recipes.forecast import check_fits, expected_of, forecast, largest_part, remedies
from hone.train import TrainConfig

CONFIG = ModelConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=128,
)


def batches():
    samples = [
        completion_sample([1] * (2 + number % 40), [5] * (1 + number % 40)) for number in range(200)
    ]
    return PackedBatches(samples, 512, 0)


def planned(budget, **settings):
    config = TrainConfig(steps=10, precision="fp32", optimizer="adamw", **settings)
    part = largest_part(batches(), config.micro_batches)
    return forecast(CONFIG, part, config, "cpu", tokens_per_step=512, budget=budget)


def test_the_largest_part_is_of_all_steps():
    found, data = largest_part(batches(), 2), batches()
    parts = [part for n in range(data.batches_per_epoch) for part in data.at(n).split(2)]
    assert found.n_tokens >= sorted(part.n_tokens for part in parts)[-3]
    assert found.n_tokens < largest_part(data, 1).n_tokens


@pytest.mark.smoke
def test_what_fits_passes_and_tells_the_display():
    plan = planned(10**9)
    check_fits(plan, "cpu")
    expected = expected_of(plan)
    assert expected.peak_bytes == plan.peak
    assert expected.flops_per_token == plan.flops_per_token


def test_what_does_not_fit_names_settings_that_do():
    needed = planned(10**9).peak
    plan = planned(needed * 3 // 4)
    with pytest.raises(CapacityError, match=r"predicted peak .*micro_batches = \d+ \(") as error:
        check_fits(plan, "cpu")
    text = str(error.value)
    assert 'activation_checkpointing = "' in text
    assert not any(word in text for word in ("LoRA", "ZeRO", "lora"))
    # Followed, the advice holds.
    micro_batches = int(text.split("micro_batches = ")[1].split(" ")[0])
    check_fits(planned(needed * 3 // 4, micro_batches=micro_batches), "cpu")


def test_where_nothing_helps_it_says_so():
    assert "smaller model" in remedies(planned(1000))
