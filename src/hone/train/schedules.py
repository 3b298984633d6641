"""The learning rate over the steps of a run, as a share of its peak."""

import math

from hone.train.config import TrainConfig


def rate_at(step: int, config: TrainConfig) -> float:
    """The share of the peak rate at ``step`` (from 0).

    ``wsd`` is warmup, stable, decay (Hu et al. 2024, MiniCPM, section 4).
    """
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    fall = config.steps - warmup
    if config.schedule == "wsd":
        fall = min(fall, round(config.cooldown_fraction * config.steps))
    # 0 at the step before the fall, and 1 just after the last step: no step is without effect.
    progress = max(0.0, (step - (config.steps - fall) + 1) / (fall + 1))
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.final_fraction + (1 - config.final_fraction) * shape
