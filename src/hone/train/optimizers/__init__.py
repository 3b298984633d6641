"""What a step changes, and by which rule.

| rule | state, in bytes per trained weight |
|---|---|
| AdamW | 8: two float32 moments |
| AdamW in 8 bits | 2 + 8/256: two codes, and two scales per block of 256; 8 under 4,096 weights |
| Adafactor | 4/columns + 4/rows of a matrix; 4 for a vector |
| Muon | 4: one float32 momentum, for hidden matrices; AdamW has the rest |

Paged rules have the same state in the host's memory. Besides it, a trained weight takes 8 bytes in
a float32 run (itself and its gradient) and 10 in a run of 16 bits (2 in the model, 4 for the master
and 4 for the gradient; 2 more for the model's own gradient until a micro-batch is done), and a mean
of the weights takes 4.
"""

from hone.train.optimizers.optimizer import Optimizer

__all__ = ["Optimizer"]
