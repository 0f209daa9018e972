"""Which images are in which batch: a pure function of (seed, step), so that a run resumes from the step alone."""

from functools import lru_cache

import numpy as np

from afa_jax.data.dataset import Split, generator


def batch_indices(count: int, batch_size: int, step: int, seed: int, purpose: str = "order") -> np.ndarray:
    """The indices of the batch of `step`, int64 `[batch_size]`; each `purpose` has an order of its own.

    The permutations of epoch after epoch are laid end to end and cut into batches, so every image is seen equally
    often, no image is dropped at an epoch's end, and a batch may be larger than the data set.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    orders = {int(e): _order(count, seed, int(e), purpose) for e in np.unique(epochs)}
    return np.array([orders[int(e)][p] for e, p in zip(epochs, positions % count, strict=True)])


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    return generator(purpose, seed, epoch).permutation(count)


def train_batch(
    split: Split, batch_size: int, step: int, seed: int, purpose: str = "order", part: tuple[int, int] = (0, 1)
) -> dict[str, np.ndarray]:
    """The batch of `step`: `image` uint8 `[B, S, S, 3]`, `label` and `index` int32 `[B]`, in memory of their own.

    Args:
      part: (k, n), the k-th of n processes, counted from 0, which reads its n-th of the batch; laid end to end, their
        parts are the whole batch.
    """
    chosen = batch_indices(len(split), batch_size, step, seed, purpose)[_own(batch_size, part)]
    return {"image": split.images[chosen], "label": split.labels[chosen], "index": chosen.astype(np.int32)}


def _own(batch_size: int, part: tuple[int, int]) -> slice:
    k, n = part
    assert batch_size % n == 0, f"a batch of {batch_size} has no {n} equal parts"
    return slice(k * batch_size // n, (k + 1) * batch_size // n)


def test_batches(split: Split, batch_size: int, part: tuple[int, int] = (0, 1)):
    """The whole split in order, in batches of one size; `mask` is 0 where the last one is filled up.

    Args:
      part: as in `train_batch`.
    """
    own = _own(batch_size, part)
    for start in range(0, len(split), batch_size):
        chosen = np.arange(start, start + batch_size)[own]
        mask = chosen < len(split)
        chosen = np.where(mask, chosen, start)
        yield {"image": split.images[chosen], "label": split.labels[chosen], "mask": mask.astype(np.float32)}
