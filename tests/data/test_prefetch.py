"""The prefetch thread: one batch ahead, in order, gone when it is no longer wanted."""

import threading
import time

import pytest

from afa_jax.data.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def settles(condition):
    """Whether it becomes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_batches_come_in_order_and_one_ahead():
    read = []
    batches = prefetch(lambda step: read.append(step) or {"step": step}, range(3, 8), put=lambda batch: batch)
    seen = []
    for batch in batches:
        seen.append(batch["step"])
        ahead = list(range(3, min(seen[-1] + 2, 8)))
        assert settles(lambda ahead=ahead: read == ahead)
        time.sleep(0.02)
        assert read == ahead  # and no further
    assert seen == [3, 4, 5, 6, 7] and settles(lambda: not threads())


def test_reading_and_using_overlap():
    """Each side waits until the other is at work, which only two threads can."""
    using, reading = threading.Event(), threading.Event()

    def read(step):
        if step == 1:
            reading.set()
            assert using.wait(10)
        return step

    batches = prefetch(read, range(2), put=lambda batch: batch)
    assert next(batches) == 0
    assert reading.wait(10)
    using.set()
    assert list(batches) == [1]


def test_what_goes_wrong_in_the_thread_is_raised_at_its_batch():
    def read(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    batches = prefetch(read, range(5), put=lambda batch: batch)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert settles(lambda: not threads())


def test_a_loop_that_is_left_leaves_no_thread():
    batches = prefetch(lambda step: step, range(10**9), put=lambda batch: batch)
    assert next(batches) == 0
    batches.close()
    assert settles(lambda: not threads())


def test_batches_are_put_on_the_device_in_the_thread():
    places = []
    put = lambda batch: places.append(threading.current_thread().name) or batch  # noqa: E731
    assert list(prefetch(lambda step: step, range(2), put=put)) == [0, 1]
    assert all(name.startswith("prefetch") for name in places)


def test_no_steps():
    assert list(prefetch(lambda step: step, range(0))) == []
