"""Byte-level BPE tokenizers, trained here or read from a Hugging Face directory.

Training normalises to NFC first (a decomposed Hangul syllable is three code points), and splits
digits one by one and quotes and brackets from words, so that a number or a name has one spelling in
tokens wherever it stands: a model that copies it from the question into SQL copies ids.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json, write_json, write_text

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

# A word with its leading space; or one digit; or one sign with its leading space; or white space.
_PIECES = r" ?[\p{L}\p{M}_]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}_]|\s+(?!\S)|\s"


class Tokenizer:
    """Text to ids and back.

    Attributes:
        bos_id, eos_id, pad_id: ids of the special tokens, None where there is no such token.
        chat_template: the Jinja source of the chat template, or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: dict[str, Any],
        chat_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.config = config
        self.chat_template = chat_template
        self.bos_token, self.bos_id = self._special("bos_token")
        self.eos_token, self.eos_id = self._special("eos_token")
        self.pad_token, self.pad_id = self._special("pad_token")

    def _special(self, key: str) -> tuple[str | None, int | None]:
        # Older files hold a token as {"content": "</s>", "lstrip": false, ...}.
        value = self.config.get(key)
        token = value.get("content") if isinstance(value, dict) else value
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
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and a chat template in either place.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        directory = Path(directory)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{directory} has no tokenizer.json. Save it with a fast tokenizer "
                "(`AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one)."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file} is not a tokenizer file: {error}.") from error
        backend.no_truncation()
        backend.no_padding()
        config: dict[str, Any] = {}
        if (directory / "tokenizer_config.json").is_file():
            config = read_json(directory / "tokenizer_config.json")
            if not isinstance(config, dict):
                raise CheckpointError(f"{directory}/tokenizer_config.json is not a JSON object.")
        template = config.get("chat_template")
        if isinstance(template, list):  # several named templates: the default one is for chat
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        if (directory / "chat_template.jinja").is_file():
            template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
        return cls(backend, config, template)

    def save(self, directory: str | Path) -> None:
        """Write the files that :meth:`load` and transformers read."""
        directory = Path(directory)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(directory / "tokenizer_config.json", config)
        if self.chat_template is not None:
            write_text(directory / "chat_template.jinja", self.chat_template)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of ``text``; special tokens are added only when asked."""
        encoded = self.backend.encode(_encodable(text), add_special_tokens=add_special_tokens)
        return list(encoded.ids)

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        """The ids of each text, in parallel."""
        encoded = self.backend.encode_batch_fast(
            [_encodable(text) for text in texts], add_special_tokens=add_special_tokens
        )
        return [list(item.ids) for item in encoded]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def __len__(self) -> int:
        return self.vocab_size

    def fingerprint(self) -> str:
        """A text that changes whenever any id could."""
        return json.dumps([self.backend.to_str(), self.config], ensure_ascii=False, sort_keys=True)


def _encodable(text: str) -> str:
    # A lone surrogate has no UTF-8; like transformers' fast tokenizers, treat it as unreadable.
    return text.encode("utf-8", "replace").decode("utf-8")
