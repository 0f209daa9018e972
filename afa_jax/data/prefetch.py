"""The next batch is read and moved to the device while the step of the one before is at work."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from afa_jax.types import Batch


def prefetch(
    read: Callable[[int], Any], steps: Iterable[int], put: Callable[[Any], Batch] = jax.device_put
) -> Iterator[Batch]:
    """Batches one after the other; when one is taken, the next is under way in a thread of its own.

    Args:
      read: the batch of a step, in memory that nothing else writes to.
      steps: whose batches are wanted, in order.
      put: moves a batch to the device.
    """
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        under_way = (pool.submit(lambda step=step: put(read(step))) for step in steps)
        ahead = next(under_way, None)
        while ahead is not None:
            batch = ahead.result()
            ahead = next(under_way, None)
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
