"""What a model cannot do, and what it was not trained for, at the lengths and layouts of a job."""

from hone.core.errors import ConfigError
from hone.models.config import ModelConfig
from hone.models.positions import Learned
from hone.plan.jobs import ServeJob, TrainJob


def longest_text(config: ModelConfig) -> int | None:
    """Tokens that the model, and its encoder, were made for; None where any number is as good."""
    stacks = [config] if config.encoder is None else [config, config.encoder]
    return min(
        (one.max_position_embeddings for one in stacks if not one.extrapolates), default=None
    )


def check_job(config: ModelConfig, job: TrainJob | ServeJob) -> None:
    """Refuse texts of more tokens than there are positions, and heads that cannot be shared out.

    Raises:
        ConfigError: naming both numbers.
    """
    for name, length, stack in _lengths(config, job):
        places = stack.max_position_embeddings
        if isinstance(stack.positions, Learned) and not stack.extrapolates and length > places:
            raise ConfigError(
                f"{name} is {length:,} tokens and the model has learned {places:,} positions; "
                f"plan for {places:,} at most."
            )
    parts = job.layout.tensor if isinstance(job, TrainJob) else job.tensor
    if not divides(config, parts):
        heads, pairs = config.num_attention_heads, config.num_key_value_heads
        keys = "" if heads == pairs else f" with {pairs} of keys and values"
        raise ConfigError(
            f"Tensor parallelism over {parts} devices cannot share out {heads} heads of attention"
            f"{keys}; take a number of devices that divides them."
        )


def warnings(config: ModelConfig, job: TrainJob | ServeJob) -> tuple[str, ...]:
    """A sentence for every length beyond what the model was made for."""
    return tuple(
        f"{name} is {length:,} tokens and the model was made for {stack.max_position_embeddings:,}:"
        " memory and time hold, its answers may not."
        for name, length, stack in _lengths(config, job)
        if not stack.extrapolates and length > stack.max_position_embeddings
    )


def divides(config: ModelConfig, parts: int) -> bool:
    """Whether ``parts`` devices get the same number of heads. Each has whole heads; where there are
    fewer heads of keys than devices, several devices have the same one (Shoeybi et al. 2019,
    section 3; Pope et al. 2022, section 3.3).
    """
    if config.mixer != "attention":
        return True
    pairs = config.num_key_value_heads
    return config.num_attention_heads % parts == 0 and (pairs % parts == 0 or parts % pairs == 0)


def _lengths(config: ModelConfig, job: TrainJob | ServeJob) -> list[tuple[str, int, ModelConfig]]:
    """The longest texts of ``job``, and which part of the model reads them."""
    if isinstance(job, ServeJob):
        return [("The context", job.context, config)]
    longest = max(job.lengths)
    found = [("The length of a sequence", longest, config)]
    if config.encoder is not None:
        source = max(job.source_lengths, default=longest)
        found.append(("The length of a source", source, config.encoder))
    return found
