"""What the server lets in: bounds of one request, of one key, and of all together.

Rates are token buckets: a minute's worth may come at once, and refills evenly.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hone.core.errors import ConfigError, RequestError

_MINUTE = 60.0


class Refusal(RequestError):  # noqa: N818 - as one would say it
    """A request that goes over a bound.

    Attributes:
        status: of the HTTP answer: 400, 408, 413 or 429.
        code: a short name of the reason, for programs.
        retry_after: whole seconds after which the same request may be let in; None if never.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that is let in; None is no bound but the model's own.

    Attributes:
        requests: at once, those that wait included.
        requests_per_key: the same, of one key.
        requests_per_minute, tokens_per_minute: of one key; tokens of prompts and outputs together.
        prompt_tokens: of one prompt.
        output_tokens: of one output.
        samples: outputs of one request (``n``, ``best_of``, prompts of one call together).
        seconds: from the moment a request is let in to its last token.
        body_bytes: of one call.

    Raises:
        ConfigError: a bound is not above 0.
    """

    requests: int | None = 1024
    requests_per_key: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    samples: int | None = 128
    seconds: float | None = 600.0
    body_bytes: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(
                    f"The bound {name} is {value}; give a number above 0, or leave it out."
                )

    def check_body(self, size: int) -> None:
        """Raises :class:`Refusal` 413 for a body of more than ``body_bytes``."""
        if size > self.body_bytes:
            raise Refusal(
                413, "body_too_large", f"The body is over {self.body_bytes:,} bytes; send less."
            )

    def check_samples(self, count: int) -> None:
        """Raises :class:`Refusal` 400 for more outputs in one call than ``samples``."""
        if self.samples is not None and count > self.samples:
            raise Refusal(
                400,
                "too_many_outputs",
                f"This asks for {count} outputs; ask for at most {self.samples} in one call.",
            )

    def check_prompt(self, tokens: int, longest: int | None) -> None:
        """Raises :class:`Refusal` 400 for a prompt over ``longest`` or ``prompt_tokens``.

        The code is the one that clients of OpenAI's look for when they shorten a conversation.
        """
        bounds = [most for most in (longest, self.prompt_tokens) if most is not None]
        if bounds and tokens > min(bounds):
            raise Refusal(
                400,
                "context_length_exceeded",
                f"The prompt has {tokens:,} tokens; the most here is {min(bounds):,}. Shorten it.",
            )

    def check_output(self, asked: int | None) -> int | None:
        """``max_tokens`` of a request within ``output_tokens``, which is what None becomes.

        Raises:
            Refusal: 400, more were asked for.
        """
        if asked is None or self.output_tokens is None or asked <= self.output_tokens:
            return self.output_tokens if asked is None else asked
        raise Refusal(
            400,
            "too_many_tokens",
            f"max_tokens is {asked:,}; ask for at most {self.output_tokens:,}.",
        )

    def too_slow(self) -> Refusal:
        """The 408 of a request that took longer than ``seconds``."""
        return Refusal(
            408,
            "request_timeout",
            f"The answer took over {self.seconds:g} seconds and was stopped; ask for fewer tokens.",
        )


class _Bucket:
    """A minute's worth of something; may be overdrawn by what is known only afterwards."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.size, self.level, self.seen = float(per_minute), float(per_minute), now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` is there; infinite if it never will."""
        if amount > self.size:
            return math.inf
        self.level = min(self.size, self.level + (now - self.seen) * self.size / _MINUTE)
        self.seen = now
        return max(0.0, amount - self.level) * _MINUTE / self.size

    def take(self, amount: float) -> None:
        self.level -= amount


class _Owner:
    """What one key has under way, and may still do in this minute."""

    def __init__(self, bounds: Bounds, now: float) -> None:
        self.under_way = 0
        self.requests = _bucket(bounds.requests_per_minute, now)
        self.tokens = _bucket(bounds.tokens_per_minute, now)


def _bucket(per_minute: int | None, now: float) -> _Bucket | None:
    return None if per_minute is None else _Bucket(per_minute, now)


class Pass:
    """What a request that was let in holds; ``used`` is charged when it ends."""

    def __init__(self) -> None:
        self.used = 0

    def use(self, tokens: int) -> None:
        """Note tokens that the request generated."""
        self.used += tokens


class Limiter:
    """Counts what is under way and how fast keys ask. One thread uses it.

    Args:
        bounds: what is let in.
        clock: seconds that never go back.
    """

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds, self._clock = bounds, clock
        self._owners: dict[str, _Owner] = {}
        self.under_way = 0

    @contextmanager
    def admit(self, owner: str, prompt_tokens: int = 0, requests: int = 1) -> Iterator[Pass]:
        """Let a call in for as long as the block lasts.

        The tokens of its prompts are charged now. Those of its outputs, which nobody knows yet,
        are charged when the block ends; they may overdraw, and then the key waits longer.

        Args:
            owner: whose key it is.
            prompt_tokens: of all its prompts.
            requests: how many prompts it has: each is one request.

        Raises:
            Refusal: 429 with the seconds to wait; 413 when no waiting would help.
        """
        bounds, now = self.bounds, self._clock()
        who = self._owners.get(owner)
        if who is None:
            who = self._owners[owner] = _Owner(bounds, now)
        _check_room(self.under_way, requests, bounds.requests, "The server")
        _check_room(who.under_way, requests, bounds.requests_per_key, "This key")
        charges = [
            (who.requests, float(requests), "requests", bounds.requests_per_minute),
            (who.tokens, float(prompt_tokens), "tokens", bounds.tokens_per_minute),
        ]
        for bucket, amount, what, most in charges:
            if bucket is not None:
                _check_rate(bucket.wait(amount, now), amount, what, most)
        for bucket, amount, *_ in charges:
            if bucket is not None:
                bucket.take(amount)
        self.under_way += requests
        who.under_way += requests
        held = Pass()
        try:
            yield held
        finally:
            self.under_way -= requests
            who.under_way -= requests
            if who.tokens is not None:
                who.tokens.take(held.used)


def _check_room(under_way: int, more: int, most: int | None, who: str) -> None:
    if most is None or under_way + more <= most:
        return
    if more > most:
        message = f"{who} takes at most {most} requests at once, and this call has {more}."
        raise Refusal(413, "too_many_requests_in_call", message)
    message = f"{who} is busy with {under_way} requests, of at most {most}; try again in a second."
    raise Refusal(429, "too_many_requests", message, 1)


def _check_rate(wait: float, amount: float, what: str, most: int | None) -> None:
    if wait == math.inf:
        message = f"This call has {amount:,.0f} {what}, and the key may use {most:,} per minute."
        raise Refusal(413, "rate_limit_too_small", message)
    if wait > 0:
        seconds = math.ceil(wait)
        raise Refusal(
            429,
            "rate_limit_exceeded",
            f"This key may use {most:,} {what} per minute; try again in {seconds} s.",
            seconds,
        )
