"""Photos with segmentation masks: `images/*`, `masks/<the same name>.png` and `concepts.csv`."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError

UNLABELLED = 0
"""The index of pixels of which nothing is said."""


class Concept(NamedTuple):
    """What a mask can say of a pixel: `sky` of the category `object`."""

    name: str
    category: str


@dataclass(frozen=True)
class Masked:
    """Photos with masks, each read when it is asked for.

    Attributes:
      files: the photos.
      masks: the masks of each photo; more than one where a pixel is of several concepts, a part and an object.
      concepts: by their index in the masks.
    """

    files: tuple[Path, ...]
    masks: tuple[tuple[Path, ...], ...]
    concepts: Mapping[int, Concept]

    def labels(self, i: int, size: int) -> np.ndarray:
        """The indices of a photo's pixels, resized to `size` × `size` by the nearest: int32 `[L, size, size]`."""
        resized = [_open_mask(file).resize((size, size), Image.Resampling.NEAREST) for file in self.masks[i]]
        return np.stack([np.asarray(mask).astype(np.int32) for mask in resized])


@dataclass(frozen=True)
class Resized:
    """The photos themselves, whole, both sides resized to what a network sees: uint8 `[S, S, 3]` each."""

    files: Sequence[Path]
    size: int

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        if np.ndim(chosen) == 0:
            return resize(decode(self.files[chosen].read_bytes()), self.size, "square")
        return np.stack([self[int(i)] for i in chosen])


def read_masked(folder: Path) -> Masked:
    """Finds the photos, their masks and what the masks' indices mean, and looks that all fit.

    A photo `images/a.jpg` has the mask `masks/a.png`, and more where there are folders in `masks`: `masks/part/a.png`.
    A mask is an index image (grey or with a palette); 0 is unlabelled. `concepts.csv` has the columns `index`, `name`
    and `category`.

    Raises:
      UserError: there are no photos; one has no mask, or one of another size; a mask is no index image, or has an index
        that is not in `concepts.csv`; or that file is wrong.
    """
    concepts = _read_concepts(folder / "concepts.csv")
    images, masks = folder / "images", folder / "masks"
    files = sorted(f for f in images.iterdir() if f.is_file() and not f.name.startswith(".")) if images.is_dir() else []
    if not files:
        raise UserError(f"{folder} has no photos: put them into {images}, and their masks into {masks}.")
    found = []
    for file in files:
        own = tuple(sorted(masks.glob(f"**/{_literal(file.stem)}.png")))
        if not own:
            raise UserError(f"The photo {file} has no mask {masks / file.stem}.png: make it, or remove the photo.")
        for mask in own:
            _check(file, mask, concepts)
        found.append(own)
    return Masked(tuple(files), tuple(found), concepts)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _read_concepts(file: Path) -> dict[int, Concept]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
        concepts = {int(row["index"]): Concept(row["name"], row["category"]) for row in rows}
    except FileNotFoundError as error:
        raise UserError(f"There is no {file}, which says what the masks' indices mean: index,name,category.") from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{file} must have the columns index, name and category, the first a number.") from error
    if not concepts or len(concepts) < len(rows) or UNLABELLED in concepts:
        raise UserError(f"{file} must have each index once, and not {UNLABELLED}, which is what has no label.")
    if any(not concept.name or not concept.category for concept in concepts.values()):
        raise UserError(f"{file} has a line without a name or a category.")
    return concepts


def _open_mask(file: Path) -> Image.Image:
    try:
        mask = Image.open(file)
        mask.load()
    except Exception as error:  # Pillow's plugins raise what they like
        raise UserError(f"{file} is no image that can be read ({error}).") from error
    if mask.mode not in ("1", "L", "P", "I", "I;16"):
        raise UserError(f"{file} must be an index image, one number a pixel; it is of the kind {mask.mode}.")
    return mask


def _check(file: Path, mask_file: Path, concepts: Mapping[int, Concept]) -> None:
    mask = _open_mask(mask_file)
    try:
        size = decode(file.read_bytes()).size
    except Exception as error:
        raise UserError(f"{file} is no image that can be read ({error}).") from error
    if size != mask.size:
        sizes = " and ".join(f"{width} × {height}" for width, height in (size, mask.size))
        raise UserError(f"{file} and its mask {mask_file} must be of one size, and have {sizes} pixels.")
    unknown = sorted(set(np.unique(np.asarray(mask)).tolist()) - {UNLABELLED, *concepts})
    if unknown:
        raise UserError(f"{mask_file} has the index {unknown[0]}, which concepts.csv does not have: add its line.")
