"""How good a trained network is on any labelled images: top-1, by class, and which classes it takes for which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from afa_jax.data.batches import test_batches
from afa_jax.data.dataset import Split
from afa_jax.errors import UserError, nearest
from afa_jax.inference.classifier import Classifier


class Counts(NamedTuple):
    """What a network made of labelled images.

    Attributes:
      confusion: int `[C, C]`, images by true class and by what was said.
      loss: the sum of their cross-entropies.
    """

    confusion: np.ndarray
    loss: float


def places(known: Sequence[str], given: Sequence[str]) -> np.ndarray:
    """Where each class of a data set is among those of a network, by its name; int `[len(given)]`.

    Raises:
      UserError: the network does not know one of them.
    """
    strange = [name for name in given if name not in known]
    if strange:
        number = f"has {len(given)} classes and the network {len(known)}"
        raise UserError(
            f"The data set's classes do not fit the network's: it {number}, which does not know {len(strange)} of "
            f"them, such as {strange[0]!r}; {nearest(strange[0], known)}"
        )
    return np.array([known.index(name) for name in given])


def count(classifier: Classifier, split: Split, classes: Sequence[str], batch_size: int) -> Counts:
    """Every image of a split once.

    Args:
      classes: what the labels of the split count.

    Raises:
      UserError: the network does not know a class.
    """
    here, number = places(classifier.classes, classes), len(classifier.classes)
    confusion, loss = np.zeros((number, number), np.int64), 0.0
    batch_size = min(batch_size, len(split))
    for batch in test_batches(split, batch_size):
        seen = int(batch["mask"].sum())  # the last batch is filled up
        labels = here[batch["label"][:seen]]
        logits = classifier.logits(batch["image"], batch_size)[:seen].astype(np.float64)
        np.add.at(confusion, (labels, logits.argmax(1)), 1)
        top = logits.max(1)
        loss += float((top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(seen), labels]).sum())
    return Counts(confusion, loss)


def report(counts: Counts, classes: Sequence[str], pairs: int) -> dict[str, Any]:
    """The counts in figures.

    Args:
      pairs: how many of the pairs of classes that are taken for one another are named.

    Returns:
      `images`, `top1` and `cross_entropy` of all; `per_class`, those of each class that has images; `confused`, the
      pairs with the most mistakes: `share` is that of the true class's images.
    """
    confusion = counts.confusion
    images, right = confusion.sum(1), confusion.diagonal()
    total = int(images.sum())
    mistakes = confusion - np.diag(right)
    # The most mistakes first; of as many the larger share, then the order of the classes.
    order = sorted(zip(*np.nonzero(mistakes), strict=True), key=lambda p: (-mistakes[p], images[p[0]], p))
    return {
        "images": total,
        "top1": float(right.sum() / total),
        "cross_entropy": counts.loss / total,
        "per_class": [
            {"class": name, "images": int(n), "correct": int(r), "top1": float(r / n)}
            for name, n, r in zip(classes, images, right, strict=True)
            if n
        ],
        "confused": [
            {
                "true": classes[true],
                "predicted": classes[said],
                "images": int(mistakes[true, said]),
                "share": float(mistakes[true, said] / images[true]),
            }
            for true, said in order[:pairs]
        ],
    }
