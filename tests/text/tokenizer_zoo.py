"""Tiny tokenizers of every family, written to disk by transformers as their authors write them."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "How many customers live in Seoul? It's 1,234 — don't ask.",
    "서울에 사는 고객은 몇 명이야? 부산이 아니라 서울에서.",
    "SELECT name FROM customers WHERE city = '서울' AND price > 12000",
    "The quick brown fox jumps over the lazy dog, isn't it?",
] * 3
# A template as published ones are: it writes the BOS token itself.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ENDOFTEXT = ["<|endoftext|>", "<|padding|>"]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>"]
_BLOOM = ["<unk>", "<s>", "</s>", "<pad>"]


def make(family: str, directory: Path) -> None:
    """Write the tokenizer and the ``config.json`` of ``family`` to ``directory``."""
    tokenizer = _FAMILIES[family]()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    kind = {"llama3": "llama", "xlm_roberta": "xlm-roberta"}.get(family, family)
    (directory / "config.json").write_text(json.dumps({"model_type": kind}))


def change_config(directory: Path, *drop: str, **values: object) -> None:
    """Take keys of ``tokenizer_config.json`` away and set others."""
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text()) | values
    kept = {key: value for key, value in config.items() if key not in drop}
    file.write_text(json.dumps(kept))


def _bpe(special: list[str], *, byte_level: bool) -> tuple[dict, list]:
    backend = tokenizers.Tokenizer(models.BPE())
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _unigram(special: list[str], unknown: str) -> list[tuple[str, float]]:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token=unknown, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return [tuple(item) for item in json.loads(backend.to_str())["model"]["vocab"]]


def _fast(vocab, merges, *, normalizer=None, split=None, processor=None, **roles):
    """A tokenizer without a class of its own: ``tokenizer.json`` says it all."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, level]) if split else level
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def _frame(vocab: dict, single: str, pair: str, *tokens: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, vocab[token]) for token in tokens]
    )


def _llama(**extra):
    from transformers import LlamaTokenizer

    vocab, merges = _bpe(["<unk>", "<s>", "</s>", *_BYTES], byte_level=False)
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, **extra)


def _phi3():
    # Its control tokens swallow the white space that follows them.
    tokenizer = _llama()
    tokens = ["<|user|>", "<|end|>"]
    tokenizer.add_tokens([tokenizers.AddedToken(t, rstrip=True, special=True) for t in tokens])
    return tokenizer


def _llama3():
    vocab, merges = _bpe(_LLAMA3, byte_level=True)
    bos, eos = _LLAMA3
    pattern = tokenizers.Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+")
    processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            _frame(vocab, f"{bos} $A", f"{bos} $A {bos}:1 $B:1", bos),
        ]
    )
    return _fast(
        vocab,
        merges,
        split=pre_tokenizers.Split(pattern, behavior="isolated"),
        processor=processor,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=True,
    )


def _qwen():
    from transformers import Qwen2Tokenizer

    vocab, merges = _bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], byte_level=True)
    extra = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", extra_special_tokens=extra
    )


def _gemma():
    from transformers import GemmaTokenizer

    vocab, merges = _bpe([*_GEMMA, *_BYTES], byte_level=False)
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


def _gpt2():
    from transformers import GPT2Tokenizer

    vocab, merges = _bpe(_ENDOFTEXT, byte_level=True)
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def _gpt_neox():
    from transformers import GPTNeoXTokenizer

    vocab, merges = _bpe(_ENDOFTEXT, byte_level=True)
    return GPTNeoXTokenizer(vocab=vocab, merges=merges)


def _bloom():
    vocab, merges = _bpe(_BLOOM, byte_level=True)
    pattern = tokenizers.Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")
    return _fast(
        vocab,
        merges,
        split=pre_tokenizers.Split(pattern, behavior="isolated"),
        processor=processors.ByteLevel(trim_offsets=False),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def _bert():
    from transformers import BertTokenizer

    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=_BERT, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return BertTokenizer(vocab=backend.get_vocab(), clean_up_tokenization_spaces=True)


def _roberta():
    from transformers import RobertaTokenizer

    vocab, merges = _bpe(_ROBERTA, byte_level=True)
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    return RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask)


def _modernbert():
    vocab, merges = _bpe(_BERT, byte_level=True)
    processor = _frame(
        vocab, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]"
    )  # fmt: skip
    return _fast(
        vocab,
        merges,
        normalizer=normalizers.NFC(),
        processor=processor,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token=tokenizers.AddedToken("[MASK]", lstrip=True, special=True),
    )


def _t5():
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"], "<unk>"))


def _xlm_roberta():
    from transformers import XLMRobertaTokenizer

    return XLMRobertaTokenizer(vocab=_unigram(_ROBERTA, "<unk>"))


_FAMILIES = {
    "llama": _llama,
    "llama3": _llama3,
    "mistral": _llama,
    "mixtral": _llama,
    "phi3": _phi3,
    "qwen2": _qwen,
    "qwen2_moe": _qwen,
    "qwen3": _qwen,
    "qwen3_moe": _qwen,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "mamba": _gpt_neox,
    "mamba2": _gpt_neox,
    "bloom": _bloom,
    "bert": _bert,
    "roberta": _roberta,
    "bart": _roberta,
    "modernbert": _modernbert,
    "t5": _t5,
    "xlm_roberta": _xlm_roberta,
}
FAMILIES = list(_FAMILIES)
# One of each kind of tokenizer, where every family would only repeat it.
KINDS = ["llama", "llama3", "phi3", "qwen2", "gemma3", "gpt2", "gpt_neox", "bloom", "bert"]
KINDS += ["roberta", "modernbert", "t5", "xlm_roberta"]
