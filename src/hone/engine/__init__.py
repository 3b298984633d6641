"""Generation: the cache, the sampler, stop strings and streaming, batches, and loading a model.

Here: everything between a prompt and its text. Not here: how a layer computes (models, kernels),
number formats (quant), or a network protocol.
"""

from hone.engine.generate import Finished, GenerationResult, Stream
from hone.engine.lm import LM, load
from hone.engine.sampling import SamplingParams

__all__ = ["LM", "Finished", "GenerationResult", "SamplingParams", "Stream", "load"]
