import threading
import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.train.prefetch import batches_ahead


class Numbers:
    """Takes a time of its own for every step, and remembers who asked."""

    fingerprint = ""

    def __init__(self, broken=None, seconds=lambda step: 0.0):
        self.broken, self.seconds, self.asked = broken, seconds, []

    def at(self, step):
        self.asked.append((step, threading.current_thread().name))
        time.sleep(self.seconds(step))
        if step == self.broken:
            raise ValueError(f"no batch {step}")
        return step


@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 4))
def test_the_batches_come_in_order(first, count, workers):
    numbers = Numbers(seconds=lambda step: 0.001 * (step % 3))
    with batches_ahead(numbers, first, first + count, workers) as coming:
        assert list(coming) == [*range(first, first + count)]
    assert sorted(step for step, _ in numbers.asked) == [*range(first, first + count)]


@pytest.mark.smoke
def test_threads_are_ahead_and_no_further_than_they_should_be():
    numbers = Numbers()
    with batches_ahead(numbers, 0, 100, 2) as coming:
        assert list(islice(coming, 3)) == [0, 1, 2]
        time.sleep(0.05)
        assert [step for step, _ in numbers.asked] == [*range(7)]
    assert all(name.startswith("batches") for _, name in numbers.asked)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_batch_would(workers):
    with batches_ahead(Numbers(broken=4), 0, 9, workers) as coming:
        assert list(islice(coming, 4)) == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="no batch 4"):
            next(coming)


def test_no_thread_is_left():
    before, numbers = threading.active_count(), Numbers(broken=7)
    with pytest.raises(ValueError, match="no batch 7"), batches_ahead(numbers, 0, 50, 3) as coming:
        list(coming)
    assert threading.active_count() == before
