"""Tokenizers made here beside byte-level BPE: single characters, further special tokens."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, processors

from hone.core.errors import DataError
from hone.text.tokenizer import BOS, EOS, PAD, Tokenizer

UNKNOWN, MASK = "<unk>", "<mask>"


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """One token for each character that occurs in ``texts``; any other is unknown.

    Texts are normalised to NFC, so a Hangul syllable is one character.

    Raises:
        DataError: there is no character at all.
    """
    normalise = normalizers.NFC().normalize_str
    characters = sorted({c for text in texts for c in set(normalise(text))})
    if not characters:
        raise DataError("There is no text to take the characters of.")
    spellings = [PAD, BOS, EOS, UNKNOWN, *characters]
    backend = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(spellings)}, [], unk_token=UNKNOWN)
    )
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(backend, config)


def with_tokens(
    tokenizer: Tokenizer, mask: str | None = None, additional: Sequence[str] = ()
) -> Tokenizer:
    """``tokenizer`` with more special tokens behind its own.

    Args:
        mask: what stands for a hidden token.
        additional: tokens without a role, e.g. the sentinels of span corruption.
    """
    config = dict(tokenizer.config)
    if mask is not None:
        config["mask_token"] = mask
    if additional:
        config["additional_special_tokens"] = [*tokenizer.additional_tokens, *additional]
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    return Tokenizer(backend, config, tokenizer.chat_templates)
