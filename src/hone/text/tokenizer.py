"""Tokenizers: trained here, or read from a Hugging Face directory whose ``tokenizer.json`` may
describe any kind (byte-level or byte-fallback BPE, WordPiece, Unigram).

``tokenizer.json`` is what a model was trained with, so it is followed to the letter. transformers 5
rebuilds the pipeline of some classes (``LlamaTokenizer``, ``GPT2Tokenizer``) from the class alone;
where that differs from the file, the file is right.

Training normalises to NFC first (a decomposed Hangul syllable is three code points), and splits
digits one by one and quotes and brackets from words, so that a number or a name has one spelling in
tokens wherever it stands: a model that copies it from the question into SQL copies ids.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from hone.core.errors import CheckpointError, DataError
from hone.core.files import write_json, write_text
from hone.text import special_tokens
from hone.text.chat_files import read_templates, write_templates

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

# A word with its leading space; or one digit; or one sign with its leading space; or white space.
_PIECES = r" ?[\p{L}\p{M}_]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}_]|\s+(?!\S)|\s"
# transformers writes 1e30 where there is no limit.
_NO_LENGTH = 10**29
# What a directory may hold instead of tokenizer.json, and what that is.
_OTHER_FORMATS = {
    "tokenizer.model": "a SentencePiece model",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
    "vocab.json": "a BPE vocabulary",
    "vocab.txt": "a WordPiece vocabulary",
    "tekken.json": "a Tekken vocabulary",
    "tiktoken.model": "a tiktoken vocabulary",
}
# English spacing that WordPiece loses (transformers' clean_up_tokenization), in this order.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

Span = tuple[int, int]


class Tokenizer:
    """Text to ids and back, equal to transformers on the same ``tokenizer.json``.

    One difference is meant: where ``tokenizer.json`` adds a BOS token before a text that begins
    with one already (a rendered chat template does), there is one BOS and not two.

    Attributes:
        bos_id, eos_id, pad_id, unk_id, sep_id, cls_id, mask_id: ids of the special tokens, None
            where there is no such token; ``bos_token`` and so on are their spellings.
        named_tokens: spelling of every special token that has a name, e.g. ``image_token`` too.
        additional_tokens: spellings of those without one.
        special_ids: the ids that ``decode`` skips.
        model_max_length: tokens that the model can read, None where the files do not say.
        chat_templates: Jinja sources by name; a single one is called ``default``.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: dict[str, Any],
        chat_template: str | Mapping[str, str] | None = None,
    ) -> None:
        """Wrap ``backend``; tokens that ``config`` declares and it lacks are added to it."""
        special_tokens.add_missing(backend, config)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        self.backend = backend
        self.config = config
        if isinstance(chat_template, str):
            chat_template = {"default": chat_template}
        self.chat_templates: dict[str, str] = dict(chat_template or {})
        self.named_tokens = special_tokens.named(config)
        self.additional_tokens = special_tokens.additional(config)
        self.bos_token, self.bos_id = self._role("bos_token")
        self.eos_token, self.eos_id = self._role("eos_token")
        self.pad_token, self.pad_id = self._role("pad_token")
        self.unk_token, self.unk_id = self._role("unk_token")
        self.sep_token, self.sep_id = self._role("sep_token")
        self.cls_token, self.cls_id = self._role("cls_token")
        self.mask_token, self.mask_id = self._role("mask_token")
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = frozenset(index for index, token in added if token.special)
        length = config.get("model_max_length")
        self.model_max_length = int(length) if length and length < _NO_LENGTH else None

    def _role(self, role: str) -> tuple[str | None, int | None]:
        token = self.named_tokens.get(role)
        return token, None if token is None else self.backend.token_to_id(token)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, chat_template: str | None = None) -> Self:
        """Train a byte-level BPE on ``texts``.

        Raises:
            DataError: ``vocab_size`` leaves no room for the 256 bytes and 3 special tokens.
        """
        if vocab_size < 256 + 3:
            raise DataError(
                "A byte-level vocabulary needs at least 259 tokens (256 bytes and 3 special ones); "
                f"vocab_size is {vocab_size}."
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        }
        return cls(backend, config, chat_template)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read ``tokenizer.json`` and the files beside it that say what its tokens are for.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        directory = Path(directory)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise _no_tokenizer(directory)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file} is not a tokenizer file: {error}.") from error
        config = special_tokens.read_config(directory, backend)
        return cls(backend, config, read_templates(directory, config))

    def save(self, directory: str | Path) -> None:
        """Write the files that :meth:`load` and transformers read."""
        directory = Path(directory)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(directory / special_tokens.CONFIG_FILE, config)
        write_templates(directory, self.chat_templates)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the template for a plain conversation, or None."""
        return self.chat_templates.get("default")

    def chat_template_for(self, tools: object = None, name: str | None = None) -> str | None:
        """The template for a conversation, None where the checkpoint has none at all.

        Args:
            tools: when given (an empty list counts), a template named ``tool_use`` goes first.
            name: the template of that name.

        Raises:
            CheckpointError: there are templates, but none of that name, or no default.
        """
        if not self.chat_templates:
            return None
        if name is None:
            name = "default" if tools is None else "tool_use"
            name = name if name in self.chat_templates else "default"
        if name not in self.chat_templates:
            raise CheckpointError(
                f"There is no chat template {name!r}; choose one of "
                f"{', '.join(sorted(self.chat_templates))}."
            )
        return self.chat_templates[name]

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of ``text``; special tokens are added only when asked, a BOS never twice."""
        encoded = self.backend.encode(encodable(text), add_special_tokens=add_special_tokens)
        return list(encoded.ids[self._surplus(encoded) :])

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        """The ids of each text, in parallel."""
        encoded = self.backend.encode_batch_fast(
            [encodable(text) for text in texts], add_special_tokens=add_special_tokens
        )
        return [list(item.ids[self._surplus(item) :]) for item in encoded]

    def encode_pair(
        self, first: str, second: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[int]]:
        """Two texts as an encoder reads them: their ids, and for each id the text (0 or 1)."""
        encoded = self.backend.encode(
            encodable(first), encodable(second), add_special_tokens=add_special_tokens
        )
        start = self._surplus(encoded)
        return list(encoded.ids[start:]), list(encoded.type_ids[start:])

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = False
    ) -> tuple[list[int], list[Span]]:
        """The ids of ``text`` and where each stands in it.

        Returns:
            ids, and for each ``(start, end)`` in characters of ``text`` as it was given, whatever
            normalisation did to it; ``(0, 0)`` for a token that was added.
        """
        encoded = self.backend.encode(encodable(text), add_special_tokens=add_special_tokens)
        start = self._surplus(encoded)
        return list(encoded.ids[start:]), list(encoded.offsets[start:])

    def _surplus(self, encoded: tokenizers.Encoding) -> int:
        """How many tokens to drop from the front, that one BOS remains of several."""
        ids, added = encoded.ids, encoded.special_tokens_mask
        # The mask is 1 for what was added, 0 for a special token that the text itself spells.
        if len(ids) < 2 or ids[0] != ids[1] or not added[0] or added[1]:
            return 0
        # With no config beside tokenizer.json nothing is called BOS, and yet what stands before
        # every text is one, unless it has another role ([CLS], or the </s> of an empty first text).
        if ids[0] != self.bos_id and ids[0] in (self.cls_id, self.sep_id, self.eos_id):
            return 0
        return next((at for at, index in enumerate(ids) if index != ids[0]), len(ids)) - 1

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Args:
            clean_up_tokenization_spaces: take the space before English punctuation away; None does
                as the files say. BPE keeps its own spaces and is left alone, as in transformers.
        """
        text = str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.config.get("clean_up_tokenization_spaces", False)
        if clean_up_tokenization_spaces and not isinstance(self.backend.model, models.BPE):
            for spaced in _CLEAN_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, None where there is none of that spelling."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    def id_to_token(self, index: int) -> str | None:
        """The vocabulary's spelling of ``index``, None where there is no such id."""
        found = self.backend.id_to_token(index)
        return None if found is None else str(found)

    def __len__(self) -> int:
        return self.vocab_size

    def fingerprint(self) -> str:
        """A text that changes whenever any id could."""
        return json.dumps([self.backend.to_str(), self.config], ensure_ascii=False, sort_keys=True)


def encodable(text: str) -> str:
    """``text`` as tokenizers take it, as many characters long."""
    # A lone surrogate has no UTF-8, and transformers refuses it; "?" keeps the offsets right.
    return text.encode("utf-8", "replace").decode("utf-8")


def _no_tokenizer(directory: Path) -> CheckpointError:
    if not directory.is_dir():
        return CheckpointError(f"{directory} does not exist or is not a directory.")
    others = [f"{name} ({kind})" for name, kind in _OTHER_FORMATS.items()
              if (directory / name).is_file()]  # fmt: skip
    found = f"only {others[0]}" if others else "nor another tokenizer"
    packages = "transformers sentencepiece" if "SentencePiece" in found else "transformers"
    return CheckpointError(
        f"{directory} has no tokenizer.json, {found}. transformers converts what it knows: "
        f'`pip install {packages}`, then `python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')\"`."
    )
