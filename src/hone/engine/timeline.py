"""What an engine did step by step, and what of it was waste: for pictures and comparisons.

A place is one of the ``places`` rows that a step can hold. While it computes it is of use; it is
waste when it stands empty although a request waits, and when it holds a row that has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hone.core.errors import ConfigError
from hone.core.files import atomic_path

Kind = Literal["prompt", "decode", "idle"]
# A row of a step: the request's id, which of its outputs, tokens computed, and what for.
Row = tuple[str, int, int, Kind]
FORMATS = (".svg", ".png", ".pdf")
_COLOURS = {"prompt": "#4C72B0", "decode": "#55A868", "idle": "#C44E52", "empty": "#E8B9BA"}
_NAMES = {
    "prompt": "reads a prompt",
    "decode": "writes a token",
    "idle": "has ended, and is held",
    "empty": "empty while a request waits",
}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of an engine.

    Attributes:
        start, end: seconds, of any clock.
        rows: what was computed.
    """

    start: float
    end: float
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in which a place did one thing."""

    place: int
    start: float
    end: float
    kind: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a timeline; shares are of the time of all places, from first to last.

    Attributes:
        useful: share in which a place computed.
        waste: share in which it held a row that had ended, or was empty while a request waited.
        seconds: from the first arrival to the last step's end.
        tokens: written, one for each row that writes (guesses are not known here).
        rate: tokens written per second.
        ttft: mean seconds from arrival to the first token.
        ttft_p95: that of 95% of the requests.
        latency: mean seconds from arrival to the last token.
    """

    useful: float
    waste: float
    seconds: float
    tokens: int
    rate: float
    ttft: float
    ttft_p95: float
    latency: float


@dataclass
class Timeline:
    """Collects steps, and when requests came; :meth:`on_step` is an engine's observer.

    Attributes:
        places: rows that a step can hold.
    """

    places: int
    steps: list[StepRecord] = field(default_factory=list)
    arrivals: dict[str, float] = field(default_factory=dict)

    def arrive(self, request: str, now: float) -> None:
        """A request came, by the clock of the steps."""
        self.arrivals[request] = now

    def on_step(self, step: StepRecord) -> None:
        """A step was computed."""
        self.steps.append(step)

    def first_tokens(self) -> dict[str, float]:
        """When each request's first token was there: at the end of the last step of its prompt."""
        found: dict[str, float] = {}
        for request, steps in self._steps_of().items():
            read = [end for end, kind in steps if kind == "prompt"]
            found[request] = read[-1] if read else steps[0][0]
        return found

    def bars(self) -> list[Bar]:
        """What every place did and when; a row keeps its place while it runs."""
        bars: list[Bar] = []
        places: dict[tuple[str, int], int] = {}
        waits = self._waiting()
        before = self._begin
        for step in self.steps:
            rows = {(request, index): kind for request, index, _, kind in step.rows}
            places = {row: place for row, place in places.items() if row in rows}
            free = sorted(set(range(self.places)) - set(places.values()), reverse=True)
            for row in rows:
                if row not in places and free:
                    places[row] = free.pop()
            bars += [Bar(places[row], step.start, step.end, rows[row]) for row in places]
            # Between steps all places are empty; in one, those that hold no row.
            for start, end in _overlaps(waits, before, step.start):
                bars += [Bar(place, start, end, "empty") for place in range(self.places)]
            for start, end in _overlaps(waits, step.start, step.end):
                bars += [Bar(place, start, end, "empty") for place in free]
            before = step.end
        return bars

    def figures(self) -> Figures:
        """Shares, rates and times; of at least one step."""
        first, ends = self.first_tokens(), self._ends()
        seconds = self._end - self._begin
        whole = seconds * self.places
        spent = dict.fromkeys(_NAMES, 0.0)
        for bar in self.bars():
            spent[bar.kind] += bar.end - bar.start
        # A prompt's last step writes a token as well.
        tokens = len({row[:2] for step in self.steps for row in step.rows})
        tokens += sum(kind == "decode" for step in self.steps for *_, kind in step.rows)
        ttft = sorted(first[request] - self._arrival(request) for request in first)
        latency = [ends[request] - self._arrival(request) for request in ends]
        return Figures(
            useful=(spent["prompt"] + spent["decode"]) / whole,
            waste=(spent["idle"] + spent["empty"]) / whole,
            seconds=seconds,
            tokens=tokens,
            rate=tokens / seconds,
            ttft=sum(ttft) / len(ttft),
            ttft_p95=ttft[min(len(ttft) - 1, int(0.95 * len(ttft)))],
            latency=sum(latency) / len(latency),
        )

    @property
    def _begin(self) -> float:
        return min([self.steps[0].start, *self.arrivals.values()])

    @property
    def _end(self) -> float:
        return self.steps[-1].end

    def _arrival(self, request: str) -> float:
        return self.arrivals.get(request, self._begin)

    def _steps_of(self) -> dict[str, list[tuple[float, Kind]]]:
        """The end and the kind of every step that computed for a request."""
        found: dict[str, list[tuple[float, Kind]]] = {}
        for step in self.steps:
            for request, _, _, kind in step.rows:
                if kind != "idle":
                    found.setdefault(request, []).append((step.end, kind))
        return found

    def _ends(self) -> dict[str, float]:
        return {request: steps[-1][0] for request, steps in self._steps_of().items()}

    def _waiting(self) -> list[tuple[float, float]]:
        """The stretches of time in which some request has come and no step has taken it yet."""
        taken: dict[str, float] = {}
        for step in self.steps:
            for request, *_ in step.rows:
                taken.setdefault(request, step.start)
        stretches: list[tuple[float, float]] = []
        for start, end in sorted((self._arrival(request), at) for request, at in taken.items()):
            if stretches and start <= stretches[-1][1]:
                stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
            else:
                stretches.append((start, end))
        return [stretch for stretch in stretches if stretch[1] > stretch[0]]


def _overlaps(
    stretches: Sequence[tuple[float, float]], start: float, end: float
) -> list[tuple[float, float]]:
    """What of ``stretches`` lies in [start, end]."""
    cut = ((max(start, a), min(end, b)) for a, b in stretches if a < end and b > start)
    return [(a, b) for a, b in cut if b > a]


def draw(timelines: dict[str, Timeline], file: Path, title: str = "") -> None:
    """Write a picture of the places over time, one band for each timeline.

    Raises:
        ConfigError: another kind of file is asked for.
    """
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{file} is not the name of a picture; end it in one of {', '.join(FORMATS)}."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 0.9 + 2.1 * len(timelines)), layout="constrained")
    FigureCanvasAgg(figure)
    bands = figure.subplots(len(timelines), sharex=True, squeeze=False)[:, 0]
    for axes, (name, timeline) in zip(bands, timelines.items(), strict=True):
        _band(axes, name, timeline)
    bands[-1].set_xlabel("seconds", fontsize=9)
    seen = {bar.kind for timeline in timelines.values() for bar in timeline.bars()}
    marks = [Patch(color=_COLOURS[kind], label=_NAMES[kind]) for kind in _NAMES if kind in seen]
    figure.legend(
        handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower(), dpi=130)


def _band(axes: Any, name: str, timeline: Timeline) -> None:
    begin, told = timeline._begin, timeline.figures()
    bars = timeline.bars()
    for kind, colour in _COLOURS.items():
        chosen = [bar for bar in bars if bar.kind == kind]
        for place in range(timeline.places):
            here = [(b.start - begin, b.end - b.start) for b in chosen if b.place == place]
            axes.broken_barh(here, (place, 0.9), color=colour, linewidth=0)
    arrivals = [moment - begin for moment in timeline.arrivals.values()]
    axes.plot(arrivals, [-0.35] * len(arrivals), "v", color="#333333", markersize=3)
    axes.set_title(
        f"{name}: {told.waste:.0%} waste, {told.rate:,.0f} tokens/s, first token after "
        f"{_duration(told.ttft)} in the mean, last after {_duration(told.latency)}",
        fontsize=9,
        loc="left",
    )
    axes.set_ylim(timeline.places, -0.8)
    axes.set_xlim(left=0)
    axes.set_ylabel("place", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
