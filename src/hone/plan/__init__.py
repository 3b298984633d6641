"""Arithmetic of memory, time and cost, before anything is allocated.

Here: what a training or serving job takes on a device, from the model's configuration alone.
Not here: torch, and what was measured (train.memory).

Use::

    config = load_config("checkpoint")
    job = TrainJob.of_batch(8, 1024, optimizer="adamw_8bit", activation_checkpointing="blocks")
    made = plan(config, job, find_device("l4"))
    made.peak, made.fits, made.parts, made.tokens_per_second, made.changes()
"""

from hone.plan.changes import Change
from hone.plan.devices import GPUS, Device, customised, find_device
from hone.plan.jobs import Layout, Lora, ServeJob, TrainJob
from hone.plan.planner import EFFICIENCY, Plan, plan
from hone.plan.weights import count_parameters

__all__ = [
    "EFFICIENCY",
    "GPUS",
    "Change",
    "Device",
    "Layout",
    "Lora",
    "Plan",
    "ServeJob",
    "TrainJob",
    "count_parameters",
    "customised",
    "find_device",
    "plan",
]
