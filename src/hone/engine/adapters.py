"""LoRA adapters by request: one base model in memory, and any number of updates beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from hone.adapters import load_adapter, set_adapter
from hone.adapters.batched import BatchedLora, Runs
from hone.adapters.layers import LoraLinear
from hone.adapters.switch import adapters_of
from hone.core.errors import CheckpointError, ConfigError
from hone.core.nearest import nearest
from hone.engine.invariance import RowCounts, safe_row_counts
from hone.kernels.lora import LowRank
from hone.models import Model

# Tokens and their adapter, in the order of a pass.
AdapterRuns = Sequence[tuple[str | None, int]]


class AdapterBank:
    """The adapters of a model that rows of a pass may have, each its own.

    Attributes:
        row_counts: of the model with its adapters, see :func:`safe_row_counts`; empty without
            exactness, and where nothing was loaded yet.
    """

    def __init__(
        self,
        model: Model,
        exact: bool = False,
        leaves: Callable[[str], None] = lambda name: None,
    ) -> None:
        """No adapter.

        Args:
            exact: a row's result does not depend on which adapters the other rows have.
            leaves: told before an adapter is unloaded; it may refuse by raising.
        """
        self._leaves = leaves
        self._model, self._exact = model, exact
        self._updates: dict[str, dict[str, LowRank]] = {}
        self._numbers: dict[str, int] = {}
        self.row_counts: RowCounts = ()
        self._tokens, self._sources = (Runs(exact, model.device) for _ in range(2))

    @property
    def names(self) -> list[str]:
        """Those of the adapters."""
        return list(self._updates)

    def load(self, name: str, path: str | Path) -> None:
        """Read a directory of peft's or of hone's; requests may name it from now on.

        Raises:
            CheckpointError: a missing, truncated or foreign file, an adapter of another model, or
                one that changes more than linear layers.
            ConfigError: the name is taken, the model has an adapter in use, or with it no exactness
                is to be had.
        """
        adapters = adapters_of(self._model)
        if name in self._updates or name in adapters.adapters:
            raise ConfigError(f"There is an adapter {name!r} already; choose another name.")
        if adapters.active is not None:
            raise ConfigError(
                f"The model's adapter {adapters.active!r} is in use, for all requests; merge it "
                "first (hone merge), or load the model without it."
            )
        adapter = load_adapter(self._model, path, name)
        try:
            self._updates[name] = {
                layer: _update(module, layer, path) for layer, module in adapter.stand_ins.items()
            }
            self._numbers[name] = max(self._numbers.values(), default=-1) + 1
        finally:
            set_adapter(self._model, None)
            del adapters.adapters[name]
            self._build()
        if self._exact:
            row_counts = self._measured()
            if row_counts is None:
                self.unload(name)
                raise ConfigError(
                    f"{path}: with this adapter's rank no number of rows gives the same bits as "
                    "others on this machine; use it without exactness."
                )
            self.row_counts = row_counts

    def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ConfigError: there is no such adapter, or a request that is not done has it.
        """
        self._number(name)
        self._leaves(name)
        del self._updates[name], self._numbers[name]
        self._build()

    def use(self, runs: AdapterRuns, sources: AdapterRuns = ()) -> bool:
        """Say which rows the coming products have; those behind the runs have no adapter.

        Args:
            runs: the rows of the decoder, or those that the output layer scores.
            sources: the rows of an encoder, and of what a decoder makes of its hidden states.

        Returns:
            Whether any of them has an adapter.
        """
        self._tokens.set([(self._number(name), count) for name, count in runs])
        self._sources.set([(self._number(name), count) for name, count in sources])
        return any(name is not None for name, _ in (*runs, *sources))

    def _measured(self) -> RowCounts | None:
        for runs in (self._tokens, self._sources):
            runs.set_all()
        try:
            return safe_row_counts(self._model)
        finally:
            self.use([])

    def _build(self) -> None:
        """Put layers for all adapters in the places of the model's own."""
        for layer, module in adapters_of(self._model).base.modules.items():
            own = {
                self._numbers[name]: updates[layer]
                for name, updates in self._updates.items()
                if layer in updates
            }
            parent, _, child = layer.rpartition(".")
            if own:
                runs = self._sources if _reads_sources(layer) else self._tokens
                module = BatchedLora(module, own, runs, self._model.dtype).eval()
            elif not isinstance(self._at(layer), BatchedLora):
                continue
            setattr(self._at(parent), child, module)

    def _at(self, layer: str) -> nn.Module:
        return self._model.get_submodule(layer)

    def _number(self, name: str | None) -> int | None:
        if name is None:
            return None
        if name not in self._numbers:
            raise ConfigError(f"There is no adapter {name!r}. {nearest(name, self.names)}")
        return self._numbers[name]


def _update(module: nn.Module, layer: str, path: str | Path) -> LowRank:
    """What an adapter adds to a layer."""
    if not isinstance(module, LoraLinear):
        raise CheckpointError(
            f"{path}: the adapter changes {layer!r} by more than an update of a linear layer, and "
            "only those can be chosen by request; merge it into a model of its own (hone merge)."
        )
    update = module.update()
    if not all(bool(factor.isfinite().all()) for factor in (update.a_RE, update.b_FR)):
        raise CheckpointError(f"{path}: the update of {layer!r} is not all numbers; it is damaged.")
    return replace(update, a_RE=update.a_RE.detach(), b_FR=update.b_FR.detach())


def _reads_sources(layer: str) -> bool:
    """Whether a layer of an encoder-decoder reads the sources' rows, not those of the answers."""
    return ".encoder." in f".{layer}" or layer.endswith(("cross_attn.k_proj", "cross_attn.v_proj"))
