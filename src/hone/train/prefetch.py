"""Batches made by threads ahead of the steps that need them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from hone.data import Batch
from hone.train.batches import Batches

_AHEAD = 2  # batches that each thread may be ahead


@contextmanager
def batches_ahead(
    batches: Batches, first: int, last: int, workers: int
) -> Iterator[Iterator[Batch]]:
    """The batches of steps ``first`` up to ``last`` in their order.

    Args:
        workers: threads that make them; 0 to make each when it is asked for. An error in one is
            raised when its batch is.
    """
    if workers == 0:
        yield map(batches.at, range(first, last))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        yield _in_order(pool, batches, range(first, last), _AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, batches: Batches, steps: range, ahead: int
) -> Iterator[Batch]:
    begun: deque[Future[Batch]] = deque()
    for step in steps:
        begun.append(pool.submit(batches.at, step))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
