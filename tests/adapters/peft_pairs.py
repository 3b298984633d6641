"""A small random model of each family, theirs and ours, for adapters to go between them."""

import torch

from hone.models import load_model

DENSE = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CLASSIC = {
    "vocab_size": 61,
    "n_embd": 40,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BLOOM = {"vocab_size": 61, "hidden_size": 40, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
T5 = {
    "vocab_size": 61,
    "d_model": 40,
    "d_ff": 56,
    "d_kv": 12,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
BART = {
    "vocab_size": 61,
    "d_model": 40,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 56,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
MAMBA = {"vocab_size": 61, "hidden_size": 40, "num_hidden_layers": 2, "state_size": 4}
MAMBA2 = MAMBA | {"num_heads": 8, "head_dim": 10, "n_groups": 2, "chunk_size": 8}
SIZES = {
    "gpt2": CLASSIC,
    "bloom": BLOOM,
    "t5": T5,
    "bart": BART,
    "mamba": MAMBA,
    "mamba2": MAMBA2,
}
TASKS = {
    "AutoModelForCausalLM": ("causal", "CAUSAL_LM"),
    "AutoModelForSeq2SeqLM": ("seq2seq", "SEQ_2_SEQ_LM"),
    "AutoModelForMaskedLM": ("masked", None),
    "AutoModelForSequenceClassification": ("classification", "SEQ_CLS"),
    "AutoModelForTokenClassification": ("token-classification", "TOKEN_CLS"),
    "AutoModel": ("embedding", "FEATURE_EXTRACTION"),
}
IDS = torch.tensor([[3, 7, 4, 9, 5, 11, 60], [6, 5, 12, 9, 8, 33, 2]])


def make_theirs(family, kind, folder, **changes):
    """A random model of theirs, saved to ``folder``."""
    import transformers

    torch.manual_seed(0)
    sizes = SIZES.get(family, DENSE)
    config = transformers.AutoConfig.for_model(family, **(sizes | changes))
    model = getattr(transformers, kind).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    model.save_pretrained(folder)
    return again(model, folder)


def again(model, folder):
    """Their model as it was saved."""
    model = type(model).from_pretrained(folder, dtype="float32", attn_implementation="eager")
    return model.eval()


def make_ours(kind, folder):
    """Ours from ``folder``."""
    return load_model(folder, head=TASKS[kind][0])


@torch.no_grad()
def perturb(weights, seed=1):
    """Give what is trained random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)


@torch.no_grad()
def scores(model, kind):
    """Logits of two texts, from a model of either."""
    if kind == "AutoModelForSeq2SeqLM":
        return model(input_ids=IDS, decoder_input_ids=IDS[:, :4]).logits
    if kind != "AutoModel":
        return model(input_ids=IDS).logits
    return model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]


def trained(model):
    """What training would change."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def peft_adapter(theirs, kind, name="default", **settings):
    """An adapter of peft's on their model, with random values."""
    import peft

    config = peft.LoraConfig(task_type=TASKS[kind][1], **settings)
    model = peft.get_peft_model(theirs, config, adapter_name=name)
    perturb(trained(model), seed=2)
    return model.eval()
