"""What a data set is to the rest of the code, and the choice of few labelled images a class."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from afa_jax.errors import UserError


@dataclass(frozen=True)
class Split:
    """Decoded images, all of one size, and their labels."""

    images: np.ndarray
    """uint8 `[N, S, S, 3]`; it may be memory-mapped."""
    labels: np.ndarray
    """int32 `[N]`."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A labelled training split and the test split it is judged on."""

    classes: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True)
class Builder:
    """One entry of the catalogue.

    Attributes:
      load: (side of the images in pixels, labelled images a class or 0 for all, seed of their choice) to the data.
      mirrored: a left-right mirrored image still shows its class, so training may flip it.
    """

    load: Callable[[int, int, int], Dataset]
    mirrored: bool = True


def generator(purpose: str, *seed: int) -> np.random.RandomState:
    """Random numbers that are the same in every NumPy version (`RandomState` is frozen) and on every machine.

    Each purpose has a stream of its own, so that the choice of images tells nothing of their order.
    """
    entropy = (zlib.crc32(purpose.encode()), len(seed), *seed)
    return np.random.RandomState(np.random.SeedSequence(entropy).generate_state(4))


def few_per_class(labels: np.ndarray, per_class: int, seed: int, *, spare: int = 0) -> np.ndarray:
    """Chooses `per_class` images of each class.

    The choice is nested: with the same seed, five a class are among the ten a class.

    Args:
      labels: int `[N]`.
      per_class: how many of each class.
      seed: of the choice.
      spare: how many of each class must be left over, for testing.

    Returns:
      Indices in increasing order.

    Raises:
      UserError: a class has too few images.
    """
    order = generator("labelled images", seed).permutation(len(labels))
    chosen = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        if per_class > len(members) - spare:
            raise UserError(
                f"data.per_class asks for {per_class} labelled images a class, but class {label} has {len(members)}"
                f"{f', of which {spare} must stay for testing' if spare else ''}: set it to at most "
                f"{min(np.unique_counts(labels).counts) - spare}."
            )
        chosen.append(members[:per_class])
    return np.sort(np.concatenate(chosen))
