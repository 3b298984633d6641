"""Proposers by name: "ngram", "draft:PATH" and "medusa:PATH"."""

from dataclasses import replace

from hone.core.errors import CheckpointError, ConfigError
from hone.engine.options import EngineOptions
from hone.engine.speculation.ngram import NgramProposer
from hone.engine.speculation.speculation import Speculation
from hone.models import CausalLM, Seq2SeqLM
from hone.text.tokenizer import Tokenizer


def load_speculation(
    model: CausalLM | Seq2SeqLM, tokenizer: Tokenizer, options: EngineOptions
) -> Speculation | None:
    """What ``options.speculation`` names, for ``model``; None for nothing.

    Raises:
        ConfigError: it names nothing that is known, or nothing that goes with the model.
        CheckpointError: the smaller model or the heads cannot be read, or are of other tokens.
        CapacityError: there is no memory for the smaller model's cache.
    """
    name, most = options.speculation, options.speculation_length
    if name is None:
        return None
    kind, _, path = name.partition(":")
    if name == "ngram":
        return Speculation(NgramProposer(), most)
    if kind not in ("draft", "medusa") or not path:
        raise ConfigError(
            f'speculation is {name!r}; give "ngram", "draft:PATH" with the checkpoint of a smaller '
            'model, or "medusa:PATH" with heads that `hone medusa` has trained.'
        )
    if kind == "draft":
        return _draft(path, model, tokenizer, options)
    from hone.engine.speculation.medusa import MedusaProposer, load_heads

    heads, about = load_heads(path, model)
    return Speculation(MedusaProposer(model, heads, about.tree), most, about.tree.worth)


def _draft(
    path: str, model: CausalLM | Seq2SeqLM, tokenizer: Tokenizer, options: EngineOptions
) -> Speculation:
    from hone.engine.lm import load
    from hone.engine.speculation.draft import DraftModelProposer

    if model.config.encoder is not None:
        raise ConfigError(
            "A smaller model guesses for models that continue texts, and this one has an encoder; "
            'use speculation "ngram" or "medusa:PATH".'
        )
    small = load(path, device=model.device, exact=False)
    if not isinstance(small.model, CausalLM) or small.config.mixer != "attention":
        raise CheckpointError(
            f"{path} cannot guess: it has an encoder or a recurrent state. Give a decoder with "
            "attention."
        )
    if small.tokenizer.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise CheckpointError(
            f"{path} has another vocabulary than the model ({small.tokenizer.vocab_size:,} and "
            f"{tokenizer.vocab_size:,} tokens), so that neither can read the other's; give a "
            "smaller model with the same tokenizer."
        )
    own = replace(options, cache_dtype="auto", prefix_sharing=False)
    proposer = DraftModelProposer(small.model, model.config.vocab_size, own)
    return Speculation(proposer, options.speculation_length)
