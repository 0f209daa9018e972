"""A person's own images as arrays in one file (`.npz`), which `save` writes."""

from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from afa_jax.data.dataset import Builder, Dataset, Request, Split, limited
from afa_jax.data.images import resize
from afa_jax.errors import UserError
from afa_jax.files import user_path, whole

_HALVES = ("train", "test")
_NAMES = ("classes", *(f"{half}_{what}" for half in _HALVES for what in ("images", "labels")))


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Writes the file, whole or not at all.

    Args:
      arrays: `classes`, names; `train_images` and `test_images`, uint8 `[N, H, W, 3]`; `train_labels` and
        `test_labels`, `[N]`, places in `classes`.

    Raises:
      UserError: something is missing, or is not of that form.
    """
    checked = _checked("The data", arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **checked)


def load(request: Request) -> Dataset:
    """The images of the file that `data.dir` names, resized as those of files are.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    path = user_path(request.folder)
    if not request.folder or not path.is_file():
        raise UserError(f"The data set arrays is one .npz file, and {path} is none: give --config.data.dir=FILE.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = _checked(str(path), dict(file))
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise UserError(f"{path} is no .npz file of arrays ({error}).") from error
    digest = sha256()
    for name in _NAMES:
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode() + arrays[name].tobytes())
    forms = ("middle", "whole") if request.augmentation == "improved" else ("square", "square")
    train, test = (
        Split(_resized(arrays[f"{half}_images"], request.size, form), arrays[f"{half}_labels"])
        for half, form in zip(_HALVES, forms, strict=True)
    )
    return limited(Dataset(tuple(map(str, arrays["classes"])), train, test, key=digest.hexdigest()), request)


def _resized(images: np.ndarray, size: int, form: str) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize(Image.fromarray(image), size, form) for image in images])


def _checked(what: str, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise UserError(f"{what} must have {', '.join(_NAMES)}; {missing[0]} is missing.")
    checked = {name: np.asarray(arrays[name]) for name in _NAMES}
    classes = checked["classes"]
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes.tolist())) < len(classes) or len(classes) < 2:
        raise UserError(f"{what}: classes must be two or more names, each once.")
    for half in _HALVES:
        images, labels = checked[f"{half}_images"], checked[f"{half}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
            raise UserError(
                f"{what}: {half}_images must be uint8 [N, height, width, 3], not {images.dtype} {list(images.shape)}."
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise UserError(f"{what}: {half}_labels must be {len(images)} whole numbers, one an image.")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{what}: {half}_labels must be places in classes, from 0 to {len(classes) - 1}.")
        checked[f"{half}_labels"] = labels.astype(np.int32)
    return checked


DATASETS = {"arrays": Builder(load)}
