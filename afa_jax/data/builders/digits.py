"""scikit-learn's 1,797 handwritten digits, 8×8 pixels, ten classes (UCI optical recognition of handwritten digits)."""

from typing import Any

import numpy as np
from PIL import Image

from afa_jax.data.dataset import Builder, Dataset, Request, Split, few_per_class
from afa_jax.errors import UserError


def enlarge(grey: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[N, h, w]` to uint8 `[N, size, size, 3]` by Pillow's bilinear resize."""
    large = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in grey]
    return np.repeat(np.stack(large)[..., None], 3, axis=-1)


def load(request: Request) -> Dataset:
    """`request.per_class` digits of each class to train on, all the others for testing.

    Raises:
      UserError: `request.per_class` is 0 (the set has no split of its own) or more than there are.
    """
    from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

    if not request.per_class:
        raise UserError("The data set digits has no training split of its own: set data.per_class, for example to 5.")
    digits: Any = load_digits()  # a Bunch, whose fields are known at run time only
    labels = digits.target.astype(np.int32)
    images = enlarge(np.round(digits.images * (255 / 16)).astype(np.uint8), request.size)
    train = few_per_class(labels, request.per_class, request.seed, spare=1)
    test = np.setdiff1d(np.arange(len(labels)), train)
    return Dataset(
        tuple(str(d) for d in range(10)), Split(images[train], labels[train]), Split(images[test], labels[test])
    )


DATASETS = {"digits": Builder(load, mirrored=False, seeded=True)}
