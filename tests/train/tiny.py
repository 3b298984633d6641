"""A tiny Llama and a task that it can learn: write the prompt once more."""

from hone.core.seeds import rng
from hone.data import PackedBatches, completion_sample
from hone.models import CausalLM, ModelConfig


def copy_samples(count=200, vocabulary=32, longest=8):
    random = rng(0, "copy")
    words = [
        [random.randrange(4, vocabulary) for _ in range(random.randint(2, longest))]
        for _ in range(count)
    ]
    return [completion_sample([1, *word, 3], [*word, 2]) for word in words]


def tiny_batches(tokens=128, seed=0, **options):
    return PackedBatches(copy_samples(), tokens, seed, **options)


def tiny_model(seed=0, hidden=32, layers=2, tied=True):
    config = ModelConfig(
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = CausalLM(config)
    model.initialise(seed)
    return model
