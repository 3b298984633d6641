"""Training: the loop, its optimizers and schedules, and checkpoints that lose nothing.

Not here: what a model is (models), how batches are made (data), or scoring answers (evals).
"""

from hone.train.batches import Batches, TensorBatch
from hone.train.config import TrainConfig
from hone.train.contrastive import Contrastive
from hone.train.following import Expected
from hone.train.loop import TrainResult, train
from hone.train.objectives import Objective, SummedLoss
from hone.train.resume import Counters
from hone.train.trackers import TensorBoard, Tracker, Trackio

__all__ = [
    "Batches",
    "Contrastive",
    "Counters",
    "Expected",
    "Objective",
    "SummedLoss",
    "TensorBatch",
    "TensorBoard",
    "Tracker",
    "Trackio",
    "TrainConfig",
    "TrainResult",
    "train",
]
