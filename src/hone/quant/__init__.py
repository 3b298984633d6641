"""Number formats and post-training methods, the layers that compute with them, their files.

Here: int8 weights in the compressed-tensors format, NF4 weights in that of bitsandbytes. Importing
this package makes such checkpoints readable. Not here: training, adapters, generation.
"""

from hone.models import register_quantization
from hone.quant import int8_checkpoint, nf4_checkpoint, nf4_layer
from hone.quant.checkpoint import METHODS, quantize_checkpoint
from hone.quant.int8 import Int8Linear, quantize_rows
from hone.quant.int8_activations import Int8Activations, use_int8_activations
from hone.quant.nf4 import Nf4State, nf4_dequantize, nf4_linear, nf4_quantize
from hone.quant.nf4_layer import Nf4Linear, load_nf4, nf4_footprint, quantize_nf4_model

register_quantization(int8_checkpoint.QUANT_METHOD, int8_checkpoint.replace_layers)
register_quantization(nf4_layer.QUANT_METHOD, nf4_checkpoint.replace_layers, nf4_checkpoint.decoder)

__all__ = [
    "METHODS",
    "Int8Activations",
    "Int8Linear",
    "Nf4Linear",
    "Nf4State",
    "load_nf4",
    "nf4_dequantize",
    "nf4_footprint",
    "nf4_linear",
    "nf4_quantize",
    "quantize_checkpoint",
    "quantize_nf4_model",
    "quantize_rows",
    "use_int8_activations",
]
