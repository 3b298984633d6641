"""Bounds and rates, on a clock that the tests move."""

import math
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import ConfigError, RequestError
from hone.serve.limits import Bounds, Limiter, Refusal


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refused(limiter, owner="", **values):
    """The refusal of a request; fails where it is let in."""
    with pytest.raises(Refusal) as caught, limiter.admit(owner, **values):
        pass
    return caught.value


@pytest.mark.smoke
def test_a_key_may_use_a_minute_at_once_and_then_waits_exactly_as_long_as_it_is_told(clock):
    limiter = Limiter(Bounds(requests_per_minute=6), clock)
    for _ in range(6):
        with limiter.admit("kim"):
            pass
    refusal = refused(limiter, "kim")
    assert (refusal.status, refusal.retry_after) == (429, 10)
    assert "6 requests per minute; try again in 10 s" in str(refusal)
    with limiter.admit("lee"):  # another key is not concerned
        pass
    clock.now += 9.99
    assert refused(limiter, "kim").retry_after == 1
    clock.now += 0.01
    with limiter.admit("kim"):
        pass
    assert refused(limiter, "kim").retry_after == 10


def test_tokens_of_outputs_are_charged_when_they_are_known(clock):
    limiter = Limiter(Bounds(tokens_per_minute=600), clock)
    with limiter.admit("kim", prompt_tokens=100) as held:
        held.use(300)
        held.use(500)
    # 600 - 100 - 800: 300 overdrawn, at 10 a second.
    assert refused(limiter, "kim", prompt_tokens=50).retry_after == 35
    clock.now += 35
    with limiter.admit("kim", prompt_tokens=50):
        pass


def test_what_can_never_be_let_in_is_told_so(clock):
    limiter = Limiter(Bounds(tokens_per_minute=600, requests_per_key=3), clock)
    refusal = refused(limiter, "kim", prompt_tokens=601)
    assert (refusal.status, refusal.retry_after) == (413, None)
    refusal = refused(limiter, "kim", requests=4)
    assert (refusal.status, refusal.retry_after) == (413, None)


def test_requests_at_once_of_all_and_of_one_key(clock):
    limiter = Limiter(Bounds(requests=4, requests_per_key=2), clock)
    with ExitStack() as held:
        held.enter_context(limiter.admit("kim", requests=2))
        assert "This key is busy with 2" in str(refused(limiter, "kim"))
        held.enter_context(limiter.admit("lee"))
        held.enter_context(limiter.admit("park"))
        refusal = refused(limiter, "choi")
        assert (refusal.status, refusal.code, refusal.retry_after) == (429, "too_many_requests", 1)
        assert "The server is busy with 4" in str(refusal)
    assert limiter.under_way == 0
    with limiter.admit("kim", requests=2):
        pass


def test_a_refused_request_is_charged_nothing(clock):
    bounds = Bounds(requests_per_minute=10, tokens_per_minute=100)
    limiter = Limiter(bounds, clock)
    with limiter.admit("kim", prompt_tokens=90):
        pass
    for _ in range(50):
        refused(limiter, "kim", prompt_tokens=20)
    clock.now += 6
    for _ in range(2):
        with limiter.admit("kim", prompt_tokens=10):
            pass


def test_a_request_that_fails_gives_its_place_back(clock):
    limiter = Limiter(Bounds(requests=1), clock)
    with pytest.raises(ZeroDivisionError), limiter.admit("kim"):
        raise ZeroDivisionError
    with limiter.admit("kim"):
        pass


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 80), st.integers(0, 120)), max_size=40),
    st.integers(20, 90),
)
def test_no_key_gets_more_than_its_rate_and_no_wait_is_a_second_too_long(calls, rate):
    clock = Clock()
    limiter = Limiter(Bounds(tokens_per_minute=rate), clock)
    prompts, overdrawn = 0, 0
    for pause, prompt, output in calls:
        clock.now += pause
        try:
            with limiter.admit("kim", prompt_tokens=prompt) as held:
                held.use(output)
        except Refusal as refusal:
            seconds = refusal.retry_after
            if (seconds is None) != (prompt > rate):
                raise AssertionError("only what can never be let in need not wait") from refusal
            if seconds is None:
                continue
            before = clock.now
            # A second less does not do, and as long as it said does.
            clock.now = before + seconds - 1 - 1e-6
            refused(limiter, "kim", prompt_tokens=prompt)
            clock.now = before + seconds + 1e-6
            with limiter.admit("kim", prompt_tokens=prompt) as held:
                held.use(output)
        prompts += prompt + output
        overdrawn = output
    elapsed = clock.now - 1000.0
    assert prompts - overdrawn <= rate + elapsed * rate / 60 + 1e-3


def test_bounds_of_one_request():
    bounds = Bounds(body_bytes=1000, samples=4, prompt_tokens=50, output_tokens=20, seconds=2.5)
    bounds.check_body(1000)
    bounds.check_samples(4)
    bounds.check_prompt(50, 80)
    for check, status, words in (
        (lambda: bounds.check_body(1001), 413, "over 1,000 bytes"),
        (lambda: bounds.check_samples(5), 400, "at most 4"),
        (lambda: bounds.check_prompt(51, 80), 400, "the most here is 50"),
        (lambda: bounds.check_prompt(41, 40), 400, "the most here is 40"),
        (lambda: bounds.check_output(21), 400, "max_tokens is 21; ask for at most 20"),
    ):
        with pytest.raises(Refusal, match=words) as caught:
            check()
        assert caught.value.status == status
        assert isinstance(caught.value, RequestError)
    assert [bounds.check_output(asked) for asked in (None, 7, 20)] == [20, 7, 20]
    assert (bounds.too_slow().status, str(bounds.too_slow())[:32]) == (
        408,
        "The answer took over 2.5 seconds",
    )


def test_without_bounds_only_the_model_has_some():
    bounds = Bounds(requests=None, samples=None, seconds=None)
    bounds.check_samples(10**6)
    bounds.check_prompt(10**9, None)
    assert bounds.check_output(None) is None
    assert bounds.check_output(10**9) == 10**9
    with pytest.raises(Refusal):
        bounds.check_prompt(11, 10)
    limiter = Limiter(bounds, lambda: math.pi)
    with limiter.admit("kim", 10**9, 10**6):
        pass


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_bound_that_lets_nothing_in_is_refused(value):
    with pytest.raises(ConfigError, match="The bound seconds is"):
        Bounds(seconds=value)
