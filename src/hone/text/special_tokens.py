"""Which token plays which role: what the files beside ``tokenizer.json`` say of special tokens.

The rules are those of transformers 5 (``PreTrainedTokenizerBase._from_pretrained``), so that ids
agree: ``tokenizer_config.json`` names the roles; directories from before ``added_tokens_decoder``
name them in ``special_tokens_map.json``; roles that no file names are those of the tokenizer's
class; a named token that the vocabulary lacks is appended to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from hone.core.errors import CheckpointError, DataError
from hone.core.files import read_json

CONFIG_FILE = "tokenizer_config.json"
ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_ENDOFTEXT = "<|endoftext|>"
_SENTENCE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA = _SENTENCE | {
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _ENDOFTEXT)
# The most downloaded directories (gpt2, bert-base-uncased, roberta-base) name no token at all.
_ROLES_OF_CLASS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": _SENTENCE,
    "CodeLlamaTokenizer": _SENTENCE,
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT2 | {"pad_token": "<|padding|>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), _ENDOFTEXT),
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "BertTokenizer": {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
_SAME_AS_BERT = ("DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_ROLES_OF_CLASS |= dict.fromkeys(_SAME_AS_BERT, _ROLES_OF_CLASS["BertTokenizer"])
# Where no file names the class, the model's kind does.
_CLASS_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "mamba": "GPTNeoXTokenizer",
    "mamba2": "GPTNeoXTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
}


def read_config(directory: Path, backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """``tokenizer_config.json`` with the roles that other files or the class add to it.

    Raises:
        CheckpointError: a file is no JSON object, or names a token by something else than a text.
    """
    config = _read_object(directory / CONFIG_FILE)
    if "added_tokens_decoder" not in config:
        config |= _read_object(directory / "special_tokens_map.json")
        added = _read_object(directory / "added_tokens.json")
        taken = {token.content for token in backend.get_added_tokens_decoder().values()}
        special = {*named(config).values(), *additional(config)}
        missing = {
            str(index): {"content": content, "special": content in special}
            for content, index in added.items()
            if content not in taken
        }
        if missing:
            config["added_tokens_decoder"] = missing
    for role, content in _ROLES_OF_CLASS.get(_class_name(directory, config), {}).items():
        # A class's token that the vocabulary lacks was never trained: no id is made up for it.
        if role not in config and backend.token_to_id(content) is not None:
            config[role] = content
    _check(config, directory / CONFIG_FILE)
    return config


def named(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens with a name, as texts: the seven roles first, then a model's own."""
    return {name: _content(value) for name, value in _named(config).items()}


def additional(config: Mapping[str, Any]) -> list[str]:
    """Special tokens without a name, as texts."""
    return [_content(value) for value in _unnamed(config)]


def add_missing(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Make every declared token one of the backend's added tokens, as it is declared."""
    present = backend.get_added_tokens_decoder().values()
    contents, exact = {token.content for token in present}, {repr(token) for token in present}
    roles = set(named(config).values())
    new: dict[str, tokenizers.AddedToken] = {}
    decoder = config.get("added_tokens_decoder") or {}
    for _, value in sorted(decoder.items(), key=lambda item: int(item[0])):
        token = _added_token(value)
        if repr(token) not in exact:
            token.special = token.special or token.content in roles
            new[token.content] = token
    for value in [*_named(config).values(), *_unnamed(config)]:
        if (content := _content(value)) not in contents and content not in new:
            new[content] = _added_token(value)
            new[content].special = True
    if new:
        backend.add_tokens(list(new.values()))


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {role: config.get(role) for role in ROLES}
    found |= {key: value for key, value in config.items() if key.endswith("_token")}
    if isinstance(extra := config.get("extra_special_tokens"), Mapping):
        found |= extra
    return {name: value for name, value in found.items() if isinstance(_content(value), str)}


def _unnamed(config: Mapping[str, Any]) -> list[Any]:
    tokens = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    return tokens if isinstance(tokens, list) else []


def _added_token(value: Any) -> tokenizers.AddedToken:
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=True)
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {key: bool(value[key]) for key in known if key in value}
    return tokenizers.AddedToken(value["content"], **flags)


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _class_name(directory: Path, config: Mapping[str, Any]) -> str:
    name = config.get("tokenizer_class")
    if name is None:
        model = _read_object(directory / "config.json")
        kind = model.get("model_type")
        name = model.get("tokenizer_class") or (
            _CLASS_OF_MODEL.get(kind) if isinstance(kind, str) else None
        )
    return str(name).removesuffix("Fast")


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``, empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return value


def _check(config: Mapping[str, Any], file: Path) -> None:
    def is_token(value: Any) -> bool:
        return isinstance(_content(value), str)

    def refuse(key: str, expected: str) -> None:
        raise CheckpointError(f"{file}: {key} is {config[key]!r:.200}; expected {expected}.")

    for role in ROLES:
        if config.get(role) is not None and not is_token(config[role]):
            refuse(role, 'a text or {"content": text}')
    for key in ("extra_special_tokens", "additional_special_tokens"):
        tokens = config.get(key)
        listed = list(tokens.values()) if isinstance(tokens, Mapping) else tokens
        if tokens and not (isinstance(listed, list) and all(map(is_token, listed))):
            refuse(key, "a list of tokens")
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping) or not all(
        str(index).isdecimal() and isinstance(token, Mapping) and is_token(token)
        for index, token in decoder.items()
    ):
        refuse("added_tokens_decoder", 'ids with {"content": text} each')
    length = config.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float)):
        refuse("model_max_length", "a number of tokens")
