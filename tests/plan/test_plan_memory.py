"""Predictions against what the allocator counts; the whole table is benchmarks/planner.py.

8% is promised; 4% shows sooner that a kernel keeps something else than it did.
"""

import planner
import pytest

from hone.plan import find_device, plan

CHECKED = (
    "llama, uneven lengths",
    "llama, selective",
    "llama, LoRA of two",
    "gpt2",
    "qwen2_moe, blocks",
    "mamba",
    "bert, masked, uneven",
    "t5",
)


@pytest.mark.parametrize("name", CHECKED)
def test_the_peak_of_a_step_is_within_4_percent(name):
    (case,) = (case for case in planner.CASES if case.name == name)
    predicted = plan(case.config, case.job, find_device("cpu")).peak
    assert predicted == pytest.approx(planner.measured(case), rel=0.04)
