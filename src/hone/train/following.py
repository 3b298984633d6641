"""What a run says of itself: a line of figures now and then, and a live display."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hone.core.progress import progress
from hone.train.config import TrainConfig
from hone.train.memory import measure_peak
from hone.train.metrics import MetricsLog, plain
from hone.train.resume import Counters
from hone.train.schedules import rate_at
from hone.train.trackers import Tracker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expected:
    """What was predicted of a run; None where it was not.

    Attributes:
        flops_per_token: operations of a step by the tokens of its batch.
        device_flops: operations per second of a device at its best, in the run's precision.
        peak_bytes: most memory that a device holds during the run, the weights included.
        heaviest_step: the step that is predicted to take most; its tensors are counted one by one.
    """

    flops_per_token: float | None = None
    device_flops: float | None = None
    peak_bytes: int | None = None
    heaviest_step: int | None = None

    def share_of_peak(self, tokens_per_second: float, devices: int) -> float | None:
        """How much of what the devices could compute was computed for the model."""
        if self.flops_per_token is None or self.device_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.device_flops * devices)


class MemoryGauge:
    """The memory that training holds at most.

    On a GPU it is the allocator's. In the host's memory it is that of the weights when the gauge is
    made, and the growth of the process's resident memory since, as of the last looks at it. More
    than tensors is in it (libraries, what the system's allocator keeps), so one step's tensors can
    be counted apart.

    Attributes:
        tensor_bytes: most bytes of tensors in the step that was counted; None before.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensor_bytes: int | None = None
        self._model = model
        self._device = next(model.parameters()).device
        weights = {id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}
        self._offset = sum(weights.values()) - (_resident_bytes() or 0)
        self._most = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def count(self, step: Callable[[], None], state: Iterable[Tensor]) -> None:
        """Run ``step`` and count its tensors, with those that were there before it.

        Args:
            state: what the optimizer holds; the model's weights and gradients are known.
        """
        if self._device.type == "cuda":
            step()
            self.tensor_bytes = torch.cuda.max_memory_allocated(self._device)
            return
        tensors = [*self._model.parameters(), *self._model.buffers(), *state]
        tensors += [x.grad for x in tensors if x.is_leaf and x.grad is not None]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        self.tensor_bytes = sum(storages.values()) + measure_peak(step).bytes

    def peak(self) -> int | None:
        """Bytes at most until now; None where the system does not say."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        resident = _resident_bytes()
        if resident is None:
            return None
        self._most = max(self._most, resident + self._offset)
        return self._most


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class Following:
    """The lines and the display of one run, from where its counters stand to its end."""

    def __init__(
        self,
        out_dir: Path,
        config: TrainConfig,
        counters: Counters,
        gauge: MemoryGauge,
        *,
        label: str,
        devices: int = 1,
        expected: Expected | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Lines of ``metrics.jsonl`` that were written after the counters were saved are cut off.

        Raises:
            CheckpointError, HoneError: see :class:`MetricsLog`.
        """
        self._config, self._gauge = config, gauge
        self._devices, self._expected = devices, expected or Expected()
        self._shown = {"loss": "-"}
        with ExitStack() as stack:
            self._metrics = stack.enter_context(
                MetricsLog(out_dir / "metrics.jsonl", counters.metrics_bytes)
            )
            self._trackers = list(trackers)
            for tracker in self._trackers:
                tracker.begin(self._metrics.records())
                stack.callback(self._tell, tracker.close, tracker)
            self._bar = stack.enter_context(
                progress(label, config.steps, "steps", done=counters.step)
            )
            self._stack = stack.pop_all()

    def report(self, counters: Counters, tokens_per_second: float) -> None:
        """Write the figures of the window that was just closed."""
        self._show_speed(tokens_per_second)
        share = self._expected.share_of_peak(tokens_per_second, self._devices)
        record = {
            "step": counters.step,
            "loss": counters.loss,
            "lr": rate_at(counters.step - 1, self._config) * self._config.learning_rate,
            "tokens": counters.tokens,
            "trained_tokens": counters.trained_tokens,
            "grad_norm": counters.grad_norm,
            "seconds": round(counters.seconds, 3),
            "tokens_per_second": round(tokens_per_second, 1),
            "memory_bytes": self._gauge.peak(),
            "skipped_empty": counters.skipped_empty,
            "skipped_bad": counters.skipped_bad,
            "skipped_overflow": counters.skipped_overflow,
        }
        if share is not None:
            record["share_of_peak"] = round(share, 4)
        self._write(record)

    def report_evaluation(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write what an evaluation found; its ``loss`` is not that of training."""
        names = {"loss": "held_out_loss"}
        self._write({"step": step, **{names.get(key, key): x for key, x in figures.items()}})

    def sync(self) -> int:
        """Make all lines safe on the disk; returns their bytes."""
        return self._metrics.sync()

    def show(self, counters: Counters) -> None:
        """One more step is done."""
        peak = self._gauge.peak()  # looked at after every step, or it would miss the highest
        if counters.window_seconds:
            self._show_speed(counters.window_tokens / counters.window_seconds)
        loss = counters.loss
        if loss is None and counters.window_trained:
            loss = counters.window_loss / counters.window_trained
        if loss is not None:
            self._shown["loss"] = f"{loss:.3f}"
        if peak is not None:
            plan = self._expected.peak_bytes
            of = f" of {plan / 1e9:.2f}" if plan else ""
            self._shown["memory"] = f"{peak / 1e9:.2f}{of} GB"
        self._bar.advance(1, **self._shown)

    def _show_speed(self, tokens_per_second: float) -> None:
        self._shown["tokens/s"] = f"{tokens_per_second:,.0f}"
        share = self._expected.share_of_peak(tokens_per_second, self._devices)
        if share is not None:
            self._shown["of peak"] = f"{share:.0%}"

    def _write(self, record: dict[str, Any]) -> None:
        record = plain(record)
        self._metrics.write(record)
        for tracker in list(self._trackers):
            self._tell(partial(tracker.write, record), tracker)

    def _tell(self, tell: Callable[[], None], tracker: Tracker) -> None:
        """Call a tracker; one that fails is no reason to stop, and is not told anything more."""
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - other libraries raise anything
            if tracker in self._trackers:
                self._trackers.remove(tracker)
                _log.warning(
                    "%s follows the run no more (%s). All lines are in %s.",
                    type(tracker).__name__,
                    error,
                    self._metrics.path,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
