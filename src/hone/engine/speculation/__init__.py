"""Guesses of what comes next, which the model checks several of in one pass.

Here: who guesses (look-up in the text, a smaller model, heads on the model's own hidden states),
and how many tokens are worth guessing. Not here: checking, which is the engine's.
"""

from hone.engine.speculation.load import load_speculation
from hone.engine.speculation.ngram import NgramProposer
from hone.engine.speculation.proposer import Proposer
from hone.engine.speculation.speculation import Speculation

__all__ = ["NgramProposer", "Proposer", "Speculation", "load_speculation"]
