"""Tokenizers with chat templates as published models have them, in structure if not in words."""

import json
from functools import cache

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hone.text.tokenizer import Tokenizer

CORPUS = [
    "How many customers live in Seoul? It's 1,234 — don't ask.",
    "서울에 사는 고객은 몇 명이야? 부산이 아니라 서울에서. 네, 맑아요.",
    '{"name": "weather", "arguments": {"city": "부산"}}\n\n\n',
    "user assistant system tool model\n\n  You are a helpful assistant.\n",
] * 3

CHATML = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA3 = """
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""  # noqa: E501
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
# Thinking is kept in the last turn alone, so that no whole conversation holds all answers as they
# were given.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""  # noqa: E501
# As templates are that say themselves what to train; the header is no part of it.
MARKED = """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ m.content }}
        {%- for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor -%}
        {{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# An answer ends where the next turn begins.
GLM = """
{{- '[gMASK]' }}
{%- for m in messages %}
    {%- set role = 'observation' if m.role == 'tool' else m.role %}
    {{- '<|' + role + '|>\\n' + m.content }}
    {%- for call in m.tool_calls or [] %}
        {{- call.function.name + call.function.arguments }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""
# The whole conversation has an end of its own.
PHI3 = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# name: (template, tokens, bos, eos, kind of tokenizer, what ends a turn)
ZOO = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "bytes", "<|im_end|>"),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "bytes",
        "<|eot_id|>",
    ),
    "gemma": (
        GEMMA,
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        "pieces",
        "<end_of_turn>",
    ),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", "pieces", "</s>"),
    "qwen": (QWEN, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "bytes", "<|im_end|>"),
    "glm": (
        GLM,
        ["<|endoftext|>", "[gMASK]", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
        None,
        "<|endoftext|>",
        "bytes",
        "<|user|>",
    ),
    "phi3": (
        PHI3,
        ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        None,
        "<|endoftext|>",
        "bytes",
        "<|end|>",
    ),
    "marked": (MARKED, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "bytes", "<|im_end|>"),
}


def make_chat_tokenizer(name: str) -> Tokenizer:
    template, _, bos, eos, _, _ = ZOO[name]
    config = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    backend = tokenizers.Tokenizer.from_str(_trained(name))
    return Tokenizer(backend, config | ({"bos_token": bos} if bos else {}), template)


@cache
def _trained(name: str) -> str:
    _, tokens, _, _, kind, _ = ZOO[name]
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=kind == "pieces", unk_token=None))
    alphabet = []
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        # As published byte-level tokenizers have it: the place of a token lacks its space.
        from tokenizers import processors

        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "pieces" else []
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[*tokens, *pieces],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    described = json.loads(backend.to_str())
    # Bytes are spelled as tokens in a file, and are none of a text's.
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["content"] in tokens
    ]
    return json.dumps(described)


def oracle_of(tokenizer: Tokenizer):
    """transformers' own tokenizer of the same."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        chat_template=tokenizer.chat_template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
