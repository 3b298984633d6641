"""Weights that are left as they are."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from hone.core.errors import ConfigError
from hone.core.nearest import nearest


@contextmanager
def frozen(model: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """For the time of the block, the weights with a name that fits a pattern want no gradient.

    Args:
        patterns: as of file names: ``*`` any characters, ``?`` one, ``[ab]`` one of these.

    Raises:
        ConfigError: a pattern fits no weight.
    """
    # A tied weight may be called by each of its names.
    named = dict(model.named_parameters(remove_duplicate=False))
    held = []
    for pattern in patterns:
        fitting = [weight for name, weight in named.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(
                f'The training setting freeze has "{pattern}", which fits no weight of the model. '
                f"{nearest(pattern, _prefixes(named))}"
            )
        held += [weight for weight in fitting if weight.requires_grad]
    try:
        for weight in held:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


def _prefixes(names: Iterable[str]) -> set[str]:
    """The names and all patterns that stand for a module's weights."""
    found = set()
    for name in names:
        found.add(name)
        parts = name.split(".")
        found |= {".".join([*parts[:end], "*"]) for end in range(1, len(parts))}
    return found
