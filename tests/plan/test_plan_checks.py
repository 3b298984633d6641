from dataclasses import replace

import pytest
from plan_models import FAMILIES, config_of

from hone.core.errors import ConfigError
from hone.plan import Layout, ServeJob, TrainJob, find_device, plan
from hone.plan.checks import check_job, divides, longest_text, warnings

LONG = TrainJob.of_batch(1, 300)


@pytest.mark.smoke
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_beyond_the_context_is_refused_warned_about_or_as_good_as_any(family):
    config = config_of(family)
    longest = longest_text(config)
    if family in ("gpt2", "bert", "roberta", "bart"):
        with pytest.raises(ConfigError, match="is 300 tokens and the model has learned"):
            check_job(config, LONG)
    else:
        check_job(config, LONG)
        assert len(warnings(config, LONG)) == (longest is not None and longest < 300)
    if family in ("bloom", "t5", "mamba", "mamba2"):
        assert longest is None
    assert not warnings(config, TrainJob.of_batch(1, 100))


def test_a_source_is_held_against_the_encoder():
    config = config_of("bart")
    job = TrainJob(lengths=(20, 30), source_lengths=(20, 3000))
    with pytest.raises(ConfigError, match="The length of a source is 3,000 tokens"):
        check_job(config, job)
    check_job(config, replace(job, source_lengths=(20, 30)))


def test_whole_heads_are_shared_out():
    config = replace(config_of("llama"), num_attention_heads=12, num_key_value_heads=4)
    assert [n for n in range(1, 13) if divides(config, n)] == [1, 2, 4, 12]
    assert divides(config_of("mamba"), 3)
    for job in (ServeJob(tensor=6), replace(LONG, layout=Layout(tensor=6))):
        with pytest.raises(ConfigError, match="over 6 devices cannot share out 12 heads"):
            check_job(config, job)


def test_no_change_needs_heads_that_cannot_be_shared_out():
    config = replace(config_of("llama"), num_attention_heads=6, num_key_value_heads=6)
    device = find_device("h100")
    job = ServeJob(context=256, weights="nf4", cache="int8", prefill=128)
    half = int(0.7 * plan(config, job, device).peak)
    made = plan(config, job, replace(device, memory=half, reserved=0))
    assert not made.fits
    changes = {change.job.tensor for change in made.changes(9)}
    assert 2 in changes
    assert not changes & {4, 8}
