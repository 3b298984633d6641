"""Several processes that work on one run.

Not here: what they compute (train), or how a model is cut across devices.
"""

from hone.parallel.processes import Processes, join_processes

__all__ = ["Processes", "join_processes"]
