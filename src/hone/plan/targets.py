"""Which layers get an adapter and which are in 4 bits, as ``hone.adapters`` and ``hone.quant`` do.

Adapters name layers as Hugging Face's modules are named; some of those are several layers here
(GPT-2's ``c_attn``), which then share the factor that reads the inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hone.core.errors import ConfigError
from hone.core.nearest import nearest
from hone.models.config import ModelConfig
from hone.models.families import find_family
from hone.models.rules import Rule, fill, match
from hone.plan.weights import Weight

ALL_LINEAR = "all-linear"
_HEADS = ("lm_head", "score")
# What transformers reads past its layers, in a state space.
_READ_THERE = ("dt_proj", "out_proj")
_ROUTERS = (".mlp.gate", ".mlp.shared_expert_gate")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter of one layer here.

    Attributes:
        weight: its name.
        rank: r.
        reads: it has a factor A of its own; otherwise it shares another's.
    """

    weight: Weight
    rank: int
    reads: bool

    @property
    def factors(self) -> list[tuple[int, int]]:
        """The shapes of B and, unless it is another's, A."""
        rows, columns = self.weight.shape
        shapes = [(rows, self.rank)]
        return [(self.rank, columns), *shapes] if self.reads else shapes


def find_adapters(
    config: ModelConfig, weights: Sequence[Weight], targets: Sequence[str], rank: int
) -> list[Adapter]:
    """The adapters that ``targets`` mean.

    Args:
        targets: names in files or their last parts; or "all-linear" for every linear layer but the
            head's last, routers, and what a state space is read past.

    Raises:
        ConfigError: they mean none.
    """
    rules = [r for r in find_family(config.model_type).rules(config) if isinstance(r, Rule)]
    found: list[Adapter] = []
    known: set[str] = set()
    shared: set[str] = set()
    every = ALL_LINEAR in targets
    for weight in weights:
        if weight.kind != "linear":
            continue
        theirs = _their_name(rules, weight.module)
        if _is_usual(weight):
            known.add(theirs.rpartition(".")[2])
        if (every and _is_usual(weight)) or any(
            theirs == target or theirs.endswith(f".{target}") for target in targets
        ):
            found.append(Adapter(weight, rank, theirs not in shared))
            shared.add(theirs)
    if not found:
        asked = ", ".join(targets)
        raise ConfigError(
            f"No layer of this {config.model_type!r} model matches the targets {asked}. "
            f"{nearest(asked, (ALL_LINEAR, *known))}"
        )
    return found


def is_quantized(config: ModelConfig, weight: Weight) -> bool:
    """Whether a model in 4 bits has ``weight`` so: linear layers, but what scores, chooses and
    weighs, and T5's last products.
    """
    if weight.kind != "linear" or weight.module in _HEADS or weight.module.endswith(_ROUTERS):
        return False
    last = weight.module.rpartition(".")[2]
    return last != "dt_proj" and not (config.model_type == "t5" and last == "down_proj")


def _is_usual(weight: Weight) -> bool:
    if weight.module in _HEADS or weight.module.endswith(_ROUTERS):
        return False
    return not (".mixer." in weight.name and weight.module.endswith(_READ_THERE))


def _their_name(rules: Sequence[Rule], path: str) -> str:
    for rule in rules:
        for ours in rule.paths:
            if (found := match(ours, path)) is not None:
                numbers, rest = found
                return fill(rule.theirs, numbers) + rest
    return path
