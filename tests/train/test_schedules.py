import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import ConfigError
from hone.train import TrainConfig
from hone.train.schedules import rate_at


def rates(**settings):
    config = TrainConfig(**settings)
    return [rate_at(step, config) for step in range(config.steps)]


def test_wsd_rises_stays_and_falls():
    found = rates(steps=10, warmup_steps=2, schedule="wsd", cooldown_fraction=0.4)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_linear_and_cosine_fall_all_the_way():
    assert rates(steps=4, warmup_steps=0, schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2])
    cosine = rates(steps=99, warmup_steps=0, schedule="cosine", final_fraction=0.1)
    assert cosine[49] == pytest.approx(0.55)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] == pytest.approx(0.1, abs=0.001)


def test_constant_stays():
    assert rates(steps=4, warmup_steps=1, schedule="constant") == [0.5, 1, 1, 1]


@given(
    st.sampled_from(["wsd", "linear", "cosine", "constant"]),
    st.integers(1, 60),
    st.integers(0, 80),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_step_is_without_effect_or_above_the_peak(schedule, steps, warmup, cooldown, final):
    found = rates(
        steps=steps,
        schedule=schedule,
        warmup_steps=warmup,
        cooldown_fraction=cooldown,
        final_fraction=final,
    )
    assert all(0 < rate <= 1 for rate in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0, not nan"),
        ({"schedule": "cosin"}, "schedule must be one of wsd, cosine, linear, constant"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"cooldown_fraction": 1.5}, "cooldown_fraction must be between 0 and 1"),
        ({"grad_clip": -1.0}, "grad_clip must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"steps": 5, **settings})
