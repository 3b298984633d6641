"""Number formats and post-training methods, the layers that compute with them, their files.

Here: int8 weights in the compressed-tensors format. Importing this package makes such checkpoints
readable. Not here: training, adapters, generation.
"""

from hone.models import register_quantization
from hone.quant.checkpoint import QUANT_METHOD, quantize_checkpoint, replace_layers
from hone.quant.int8 import Int8Linear, quantize_rows

register_quantization(QUANT_METHOD, replace_layers)

__all__ = ["Int8Linear", "quantize_checkpoint", "quantize_rows", "replace_layers"]
