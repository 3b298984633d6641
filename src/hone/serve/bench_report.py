"""A measured load as figures: rates, percentiles, goodput, and what went wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hone.serve.bench import Measured
from hone.serve.bench_stream import Answer

_LATE = 0.05  # seconds of its own delay from which the generator is too slow to trust


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of many: their mean, percentiles and the most."""

    mean: float
    p50: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """None of nothing."""
        if not len(seconds):
            return None
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        return cls(float(np.mean(seconds)), float(p50), float(p95), float(p99), max(seconds))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request must keep to be good, in seconds; None is no limit.

    Attributes:
        ttft: to the first token.
        itl: between tokens, the mean of a request.
    """

    ttft: float | None = None
    itl: float | None = None

    def kept(self, answer: Answer) -> bool:
        """True for an answer that came whole and in time."""
        return (
            answer.whole
            and (self.ttft is None or answer.ttft <= self.ttft)
            and (self.itl is None or answer.per_token <= self.itl)
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a load; rates are per second.

    Attributes:
        whole: answers that ended as they should; all spreads are of these.
        refused: answered with 429.
        vanished: left by the client on purpose.
        unfinished: under way when the load was stopped.
        errors: how many of each other kind.
        words: what a server said with the first error of each kind.
        ttft, itl, latency: seconds to the first piece, between pieces, to the end.
        per_token: mean seconds between tokens of each request.
        goodput: requests per second that kept the limits.
        most_at_once: streams that ran at the same time.
        lag, busy: the generator's own delay and its share of a processor.
    """

    seconds: float
    sent: int
    whole: int
    refused: int
    vanished: int
    unfinished: int
    errors: dict[str, int]
    words: dict[str, str]
    prompt_tokens: int
    output_tokens: int
    request_rate: float
    output_rate: float
    ttft: Spread | None
    itl: Spread | None
    per_token: Spread | None
    latency: Spread | None
    goodput: float
    limits: Limits
    most_at_once: int
    lag: float
    busy: float
    stopped: bool

    @property
    def late(self) -> bool:
        """The generator itself was too slow for this load."""
        return self.lag > _LATE

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(measured: Measured, limits: Limits = Limits()) -> Report:
    """The figures of ``measured``."""
    answers, seconds = measured.answers, max(measured.seconds, 1e-9)
    whole = [answer for answer in answers if answer.whole]
    troubles = Counter(answer.trouble for answer in answers if answer.trouble)
    refused, vanished = troubles.pop("429", 0), troubles.pop("vanished", 0)
    told = {a.trouble: a.detail for a in reversed(answers) if a.trouble in troubles}
    gaps = [np.diff(answer.times) for answer in whole]
    tokens = sum(answer.tokens for answer in answers)
    return Report(
        seconds=measured.seconds,
        sent=len(answers),
        whole=len(whole),
        refused=refused,
        vanished=vanished,
        unfinished=sum(answer.end is None for answer in answers),
        errors=dict(troubles.most_common()),
        words=told,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        output_tokens=tokens,
        request_rate=len(whole) / seconds,
        output_rate=tokens / seconds,
        ttft=Spread.of([answer.ttft for answer in whole]),
        itl=Spread.of(np.concatenate(gaps).tolist() if gaps else []),
        per_token=Spread.of([answer.per_token for answer in whole if answer.tokens > 1]),
        latency=Spread.of([(answer.end or 0.0) - answer.start for answer in whole]),
        goodput=sum(limits.kept(answer) for answer in answers) / seconds,
        limits=limits,
        most_at_once=most_at_once(answers, measured.seconds),
        lag=measured.lag,
        busy=measured.busy,
        stopped=measured.stopped,
    )


def most_at_once(answers: Sequence[Answer], seconds: float) -> int:
    """How many requests ran at the same time, at most."""
    changes = [(a.start, 1) for a in answers]
    changes += [(seconds if a.end is None else a.end, -1) for a in answers]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def record(answer: Answer) -> dict[str, Any]:
    """One request for a line of JSON: no text of it, only its times."""
    return {
        "start": round(answer.start, 6),
        "end": None if answer.end is None else round(answer.end, 6),
        "prompt_tokens": answer.prompt_tokens,
        "max_tokens": answer.asked.max_tokens,
        "tokens": answer.tokens,
        "trouble": answer.trouble,
        "detail": answer.detail,
        "times": [round(moment, 6) for moment in answer.times],
    }
