"""Tuning a model on a file with one command: what is not asked is chosen, and explained.

Here: reading the data for what its columns are for, choices, the run. Not here: how a step is
computed (train), adapters, or what fits into memory (plan).
"""

from hone.recipes.finetune.options import FinetuneOptions
from hone.recipes.finetune.tuning import Tuning

__all__ = ["FinetuneOptions", "Tuning"]
