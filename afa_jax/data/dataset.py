"""What a data set is to the rest of the code, and the choice of few labelled images a class."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from afa_jax.errors import UserError

AUGMENTATIONS = ("default", "improved")


class Images(Protocol):
    """Decoded images that are read when they are asked for."""

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        """The image of an index, uint8 `[H, W, 3]`, or those of many, `[B, H, W, 3]`."""
        ...


@dataclass(frozen=True)
class Rows:
    """Some of the images, such as the few labelled ones among all that are cached."""

    images: Images
    rows: np.ndarray

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        return self.images[self.rows[chosen]]


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Images
    """uint8 `[S, S, 3]` each; for ten-crop evaluation five crops, `[5, crop, crop, 3]`."""
    labels: np.ndarray
    """int32 `[N]`."""
    files: Sequence[str] = ()
    """Their names, where they have any."""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What else is known of each image, `[N, …]` by name: `original_size` (width and height in pixels before it was
    resized), CUB's `parts` and `bounding_box` in pixels of that."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "Split":
        """The images of these indices, in their order; none is read."""
        extras = {name: values[chosen] for name, values in self.extras.items()}
        files = [str(self.files[i]) for i in chosen] if self.files else ()
        return Split(Rows(self.images, chosen), self.labels[chosen], files, extras)


@dataclass(frozen=True)
class Dataset:
    """A labelled training split and the test split it is judged on."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    key: str = ""
    """Changes with its images and labels; empty where they cannot change."""
    damaged: tuple[str, ...] = ()
    """The files that are no images and were left out, with the reason."""
    held_out: tuple[str, ...] = ()
    """Where the test images show classes that are not trained on, as for verification: those classes."""

    @property
    def test_classes(self) -> tuple[str, ...]:
        """What the labels of the test split count."""
        return self.held_out or self.classes


@dataclass(frozen=True)
class Request:
    """Which images of a data set are wanted, and in which form.

    Attributes:
      size: side in pixels to which images are resized.
      crop: side in pixels of the crop that the network sees.
      per_class: labelled images a class for training; 0 takes all.
      seed: of their choice, and of the splits of a set that has none of its own.
      augmentation: `default`: images are resized to `size` × `size` whatever their aspect ratio. `improved`: the short
        side is resized to `size`; the middle square is trained on, and the test images stay whole for ten-crop.
      folder: of a person's own images.
      test_fraction: of them that is for testing, where the folder does not say which.
      splits: names of a TFDS data set's splits for training and testing, separated by a comma.
      skip_damaged: files that are no images are left out in place of stopping.
      held_out: identities that are not trained on but verified, where the folder does not say which.
      fold: (k, n): of n parts of the labelled training images the k-th is tested on and the others are trained on; the
        test images are not looked at. None: no cross-validation.
    """

    size: int
    crop: int = 0
    per_class: int = 0
    seed: int = 0
    augmentation: str = "default"
    folder: str = ""
    test_fraction: float = 0.2
    splits: str = "train,test"
    skip_damaged: bool = False
    held_out: int = 80
    fold: tuple[int, int] | None = None


@dataclass(frozen=True)
class Builder:
    """One entry of the catalogue.

    Attributes:
      load: gives what a request wants; `catalog.load` does the rest.
      mirrored: a left-right mirrored image still shows its class, so training may flip it.
      seeded: the run's seed may draw the test images, so that those of one seed are trained on with another.
      verified: the test images are of identities that are not trained on (`Dataset.held_out`).
    """

    load: Callable[[Request], Dataset]
    mirrored: bool = True
    seeded: bool = False
    verified: bool = False


def generator(purpose: str, *seed: int) -> np.random.RandomState:
    """Random numbers that are the same in every NumPy version (`RandomState` is frozen) and on every machine.

    Each purpose has a stream of its own, so that the choice of images tells nothing of their order.
    """
    entropy = (zlib.crc32(purpose.encode()), len(seed), *seed)
    return np.random.RandomState(np.random.SeedSequence(entropy).generate_state(4))


def few_per_class(
    labels: np.ndarray, per_class: int, seed: int, *, spare: int = 0, classes: Sequence[str] = ()
) -> np.ndarray:
    """Chooses `per_class` images of each class.

    The choice is nested: with the same seed, five a class are among the ten a class.

    Args:
      labels: int `[N]`.
      per_class: how many of each class.
      seed: of the choice.
      spare: how many of each class must be left over, for testing.
      classes: their names, for a person.

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
            name = classes[label] if classes else label
            raise UserError(
                f"data.per_class asks for {per_class} labelled images a class, but class {name} has {len(members)}"
                f"{f', of which {spare} must stay for testing' if spare else ''}: set it to at most "
                f"{min(np.unique_counts(labels).counts) - spare}."
            )
        chosen.append(members[:per_class])
    return np.sort(np.concatenate(chosen))


def limited(data: Dataset, request: Request) -> Dataset:
    """The data set with as many labelled images a class for training as the request wants.

    Raises:
      UserError: a class has fewer, or none.
    """
    missing = sorted(set(range(len(data.classes))) - set(data.train.labels.tolist()))
    if missing:
        raise UserError(f"The class {data.classes[missing[0]]} has no image to train on.")
    if not request.per_class:
        return data
    chosen = few_per_class(data.train.labels, request.per_class, request.seed, classes=data.classes)
    return replace(data, train=data.train.take(chosen))


def folded(data: Dataset, request: Request) -> Dataset:
    """The training images alone, one fold of them for testing; every fold has the classes in equal shares.

    Where whole classes are held out from training, a fold is of classes and not of images.

    Raises:
      UserError: a class has fewer images than there are folds, or there are too few classes to hold out.
    """
    if request.fold is None:
        return data
    k, n = request.fold
    if data.held_out:
        return _folded_classes(data, k, n, request.seed)
    labels, held = data.train.labels, []
    order = generator("folds", request.seed).permutation(len(labels))
    for label, name in enumerate(data.classes):
        members = order[labels[order] == label]
        if len(members) < n:
            raise UserError(
                f"Cross-validation in {n} parts needs {n} labelled images of each class, and class {name} has "
                f"{len(members)}: take fewer parts or more images (data.per_class)."
            )
        # Classes whose images cannot be shared equally begin with different folds.
        held.append(members[(k - 1 - label) % n :: n])
    tested = np.sort(np.concatenate(held))
    trained = np.setdiff1d(np.arange(len(labels)), tested)
    return replace(data, train=data.train.take(trained), test=data.train.take(tested))


def _folded_classes(data: Dataset, k: int, n: int, seed: int) -> Dataset:
    order = generator("folds", seed).permutation(len(data.classes))
    tested = np.sort(order[k - 1 :: n])
    trained = np.setdiff1d(order, tested)
    if min(len(tested), len(trained)) < 2:
        raise UserError(
            f"Cross-validation in {n} parts needs two identities or more in each, and {len(data.classes)} are trained "
            "on: take fewer parts."
        )
    return replace(
        data,
        classes=tuple(data.classes[label] for label in trained),
        train=_of_classes(data.train, trained),
        held_out=tuple(data.classes[label] for label in tested),
        test=_of_classes(data.train, tested),
    )


def _of_classes(split: Split, chosen: np.ndarray) -> Split:
    """The images of the classes `chosen`, ascending, whose places there are their labels."""
    taken = split.take(np.flatnonzero(np.isin(split.labels, chosen)))
    return replace(taken, labels=np.searchsorted(chosen, taken.labels).astype(np.int32))
