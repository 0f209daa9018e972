"""A person's own pictures: `train/<class>/*` and `test/<class>/*`, or `<class>/*` of which a share is for testing."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from afa_jax.data import folders
from afa_jax.data.cache import load_splits
from afa_jax.data.dataset import Builder, Dataset, Request, limited
from afa_jax.errors import UserError


def load(request: Request) -> Dataset:
    """Every file below a class's folder is one of its pictures, but hidden ones and what file managers leave behind.

    Raises:
      UserError: there is no such folder, a class has too few pictures, or a file is none.
    """
    if not request.folder:
        raise UserError(
            "The data set image_folder needs to know where the pictures are: give --config.data.dir=FOLDER."
        )
    root = folders.existing(request.folder)
    halves = folders.halves(root, "a share is kept for testing (data.test_fraction)")
    if halves:
        train, test = folders.pictures_of(halves[0], "class"), folders.pictures_of(halves[1], "class", least=1)
        unknown = [name for name in test if name not in train]
        if unknown:
            raise UserError(
                f"{halves[1]} has a class {unknown[0]!r}, of which {halves[0]} has no pictures: put some in."
            )
    else:
        train, test = _divide(root, folders.pictures_of(root, "class"), request.test_fraction)
    classes = tuple(train)
    train, test = (
        folders.source(root, "image_folder", split, classes, pictures)
        for split, pictures in (("train", train), ("test", test))
    )
    return limited(load_splits(request, train, test), request)


def _divide(
    root: Path, classes: Mapping[str, Sequence[Path]], fraction: float
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """(for training, for testing) by a hash of each name, so that few change sides when others come or go."""

    def place(picture: Path) -> bytes:
        return sha256(str(picture.relative_to(root)).encode(errors="surrogateescape")).digest()

    train, test = {}, {}
    for name, pictures in classes.items():
        if len(pictures) < 2:
            raise UserError(f"The class {name} has one picture only, which cannot be for training and for testing.")
        order = sorted(pictures, key=place)
        count = min(max(1, round(fraction * len(order))), len(order) - 1)
        train[name], test[name] = sorted(order[count:]), sorted(order[:count])
    return train, test


DATASETS = {"image_folder": Builder(load)}
