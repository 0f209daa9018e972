"""The order of the images: a pure function of (seed, step) that shows each equally often."""

import multiprocessing
from functools import partial

import numpy as np
import pytest

from afa_jax.data.batches import batch_indices, train_batch
from afa_jax.data.batches import test_batches as batches_in_order
from afa_jax.data.dataset import Split

COUNT = 10


@pytest.fixture
def split():
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Split(images, np.arange(COUNT, dtype=np.int32))


@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_every_epoch_shows_every_image_once(batch_size):
    seen = np.concatenate([batch_indices(COUNT, batch_size, step, seed=1) for step in range(50)])
    epochs = seen[: len(seen) // COUNT * COUNT].reshape(-1, COUNT)
    assert (np.sort(epochs) == np.arange(COUNT)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_depends_on_seed_and_step_alone():
    first = [batch_indices(COUNT, 4, step, seed=5) for step in range(20)]
    again = [batch_indices(COUNT, 4, step, seed=5) for step in reversed(range(20))][::-1]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != batch_indices(COUNT, 4, 0, seed=6)).any()


def test_order_is_the_same_in_every_release():
    """Runs of old and new versions must see the same batches."""
    assert batch_indices(8, 8, 0, seed=0).tolist() == [4, 7, 5, 3, 2, 1, 0, 6]


def test_train_batch_is_a_copy(split):
    batch = train_batch(split, 4, 0, seed=0)
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert not np.shares_memory(batch["image"], split.images)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_test_batches_hold_each_image_once(split, batch_size):
    batches = list(batches_in_order(split, batch_size))
    assert {len(batch["label"]) for batch in batches} == {batch_size}
    labels = np.concatenate([batch["label"][batch["mask"] > 0] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(COUNT))


def one_part(count, part):
    """What one process reads of the batches 0 to 5; the files are their numbers."""
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    split = Split(images, np.arange(COUNT, dtype=np.int32))
    return [train_batch(split, 8, step, seed=3, part=(part, count)) for step in range(6)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_read_the_same_global_batches(split, count):
    whole = [train_batch(split, 8, step, seed=3) for step in range(6)]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        parts = pool.map(partial(one_part, count), range(count))
    for step, batch in enumerate(whole):
        for key, values in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][key] for part in parts]), values)
    assert all(len(part[0]["label"]) == 8 // count for part in parts)


def test_a_batch_without_equal_parts_is_our_fault(split):
    with pytest.raises(AssertionError, match="a batch of 8 has no 3 equal parts"):
        train_batch(split, 8, 0, seed=0, part=(0, 3))


def test_some_rows_of_some_rows(split):
    taken = split.take(np.array([7, 2, 5])).take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.images[np.array([0, 1])][:, 0, 0, 0], [5, 7])
    np.testing.assert_array_equal(taken.labels, [5, 7])
    assert taken.images[0][0, 0, 0] == 5
