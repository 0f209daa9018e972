"""The data sets by name."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from afa_jax.data import builders, tfds_catalog
from afa_jax.data.dataset import Builder, Dataset, Images, Request, folded
from afa_jax.data.images import five_crops
from afa_jax.errors import UserError, nearest
from afa_jax.registry import collect

CATALOG: dict[str, Builder] = collect(builders, "DATASETS")


def find(name: str) -> Builder:
    """The entry of a name in `CATALOG`, or of `tfds:<name>`.

    Raises:
      UserError: no data set has that name.
    """
    if name.startswith(tfds_catalog.PREFIX):
        return tfds_catalog.named(name)
    if name not in CATALOG:
        raise UserError(f"There is no data set {name!r}; {nearest(name, [*CATALOG, tfds_catalog.PREFIX + '<name>'])}")
    return CATALOG[name]


def load(name: str, request: Request) -> Dataset:
    """Loads a data set; for `augmentation="improved"` its test images are five crops each.

    Raises:
      UserError: no data set has that name, it cannot be had, a class has too few images, or ten crops are wanted of
        identities.
    """
    builder = find(name)
    if builder.verified and request.augmentation != "default":
        raise UserError(
            "Identities are verified by an image and its mirror image, not by ten crops: set data.augmentation to "
            f"'default' (it is {request.augmentation!r})."
        )
    data = folded(builder.load(request), request)
    if request.augmentation == "improved":
        return replace(data, test=replace(data.test, images=_FiveCrops(data.test.images, request.crop)))
    return data


@dataclass(frozen=True)
class _FiveCrops:
    images: Images
    size: int

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        if np.ndim(chosen) == 0:
            return five_crops(self.images[chosen], self.size)
        return np.stack([five_crops(self.images[i], self.size) for i in chosen])
