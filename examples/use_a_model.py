"""Load a checkpoint or a run and generate: python examples/use_a_model.py runs/demo."""

import sys

import torch

import hone

lm = hone.load(sys.argv[1])
print(f"{lm.config.num_hidden_layers} layers, vocabulary of {lm.tokenizer.vocab_size}")

# One result per prompt, in order.
prompts = ["How many customers are there?\nSQL:", "고객은 모두 몇 명이야?\nSQL:"]
for result in lm.generate(prompts, hone.SamplingParams(max_tokens=40)):
    print(repr(result.text), result.finish_reason, len(result.token_ids), "tokens")

# Sampling, repeatable by its seed, and streamed as it is made.
params = hone.SamplingParams(max_tokens=20, temperature=0.8, top_p=0.95, seed=7)
lm.generate(prompts[0], params, stream=lambda index, text: print(text, end="", flush=True))
print()

# The model is a plain torch module.
input_ids = torch.tensor([lm.tokenizer.encode(prompts[0], add_special_tokens=True)])
with torch.no_grad():
    logits = lm.model(input_ids).logits
print("logits", tuple(logits.shape))
