"""What a server knows of the model that it serves; nothing here needs torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model in the engine's process, as that process tells it once it is loaded.

    Attributes:
        name: what clients call it.
        context: most tokens of a prompt and its output together.
        longest_prompt: most tokens of a prompt; None where there is no bound.
        vocabulary: number of token ids.
        end_ids: the tokens that end an output.
        answer_start: the token that outputs of a model with an encoder continue; None elsewhere,
            where they continue the prompt.
        generates: it continues texts.
        embeds: it computes embeddings.
        adapters: names of the LoRA adapters that a request can choose.
        created: when the checkpoint was written, in seconds since 1970.
        dtype: what it computes in.
        quantization: the method of its weights; None for floats.
        speculation: how tokens are guessed ahead; None where they are not.
        policy: how requests are batched.
        exact: outputs do not depend on what else is in the batch.
        cache_dtype: of keys and values.
        cache_bytes: memory of the cache.
        cache_tokens: how many tokens it holds.
        block_size: tokens in one of its blocks.
    """

    name: str
    context: int
    vocabulary: int
    longest_prompt: int | None = None
    end_ids: tuple[int, ...] = ()
    answer_start: int | None = None
    generates: bool = True
    embeds: bool = False
    adapters: tuple[str, ...] = ()
    created: int = 0
    dtype: str = "float32"
    quantization: str | None = None
    speculation: str | None = None
    policy: str = "continuous"
    exact: bool = False
    cache_dtype: str = "float32"
    cache_bytes: int = 0
    cache_tokens: int = 0
    block_size: int = 0
