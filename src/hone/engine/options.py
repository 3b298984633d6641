"""How an engine is set up; nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from hone.core.errors import ConfigError
from hone.engine.policies import PolicyName

CompileChoice = Literal["auto", "on", "off"]
CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Bounds and choices of one engine.

    Attributes:
        max_running: sequences that are computed at a time.
        max_batch_tokens: tokens of one step.
        cache_bytes: memory for keys and values; None for what all of ``max_running`` could need,
            and at most a third of what is free.
        cache_dtype: of keys and values; "auto" is what the model computes in.
        block_size: positions of a block.
        prefix_sharing: prompts that begin alike share blocks, and are read once.
        policy: when waiting requests may start; see ``policies``.
        wait_s: how long ``dynamic`` batches wait to be filled.
        speculation: "ngram", "draft:PATH" or "medusa:PATH"; None guesses nothing.
        speculation_length: most tokens that are guessed at a time.
        compile: passes in which every sequence reads one token run compiled code: "on", or "auto"
            where a measurement at the start says that it is faster. Never in an exact engine.

    Raises:
        ConfigError: a value cannot be.
    """

    max_running: int = 64
    max_batch_tokens: int = 2048
    cache_bytes: int | None = None
    cache_dtype: str = "auto"
    block_size: int = 16
    prefix_sharing: bool = True
    policy: PolicyName = "continuous"
    wait_s: float = 0.02
    speculation: str | None = None
    speculation_length: int = 8
    compile: CompileChoice = "off"

    def __post_init__(self) -> None:
        for name, least in (
            ("max_running", 1),
            ("max_batch_tokens", 16),
            ("block_size", 1),
            ("speculation_length", 1),
        ):
            if getattr(self, name) < least:
                found = getattr(self, name)
                raise ConfigError(f"{name} is {found}; give a whole number of {least} or more.")
        if self.cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"cache_dtype is {self.cache_dtype!r}; choose one of {', '.join(CACHE_DTYPES)}."
            )
        if self.compile not in get_args(CompileChoice):
            raise ConfigError(
                f"compile is {self.compile!r}; choose one of {', '.join(get_args(CompileChoice))}."
            )
        if self.wait_s < 0:
            raise ConfigError(f"wait_s is {self.wait_s}; give seconds of 0 or more.")
