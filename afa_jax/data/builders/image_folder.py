"""A person's own pictures: `train/<class>/*` and `test/<class>/*`, or `<class>/*` of which a share is for testing."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from afa_jax.data.cache import Encoded, Files, Source, load_splits
from afa_jax.data.dataset import Builder, Dataset, Request, limited
from afa_jax.errors import UserError
from afa_jax.files import user_path

_NO_PICTURES = frozenset({"thumbs.db", "desktop.ini"})  # what file managers leave behind


def load(request: Request) -> Dataset:
    """Every file below a class's folder is one of its pictures, but hidden ones.

    Raises:
      UserError: there is no such folder, a class has too few pictures, or a file is none.
    """
    if not request.folder:
        raise UserError(
            "The data set image_folder needs to know where the pictures are: give --config.data.dir=FOLDER."
        )
    root = user_path(request.folder).absolute()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}, which data.dir names.")
    halves = [root / half for half in ("train", "test")]
    if any(half.is_dir() for half in halves):
        missing = [half for half in halves if not half.is_dir()]
        if missing:
            raise UserError(
                f"{root} has one of train and test, and no {missing[0].name}: make it, or put the classes' folders "
                f"into {root} itself, and a share of their pictures is kept for testing (data.test_fraction)."
            )
        train, test = (_classes(half) for half in halves)
        unknown = [name for name in test if name not in train]
        if unknown:
            raise UserError(f"{halves[1]} has a class {unknown[0]!r}, of which {halves[0]} has no pictures.")
    else:
        train, test = _divide(_classes(root), request.test_fraction)
    classes = tuple(train)
    sources = [_source(root, classes, split, pictures) for split, pictures in (("train", train), ("test", test))]
    return limited(load_splits(request, *sources), request)


def _classes(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class, in the order of their names."""
    try:
        folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
        found = {folder.name: sorted(_pictures(folder)) for folder in folders}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if len(found) < 2:
        raise UserError(f"{root} must have one folder of pictures for each class, and has {len(found)}.")
    for name, pictures in found.items():
        if not pictures:
            raise UserError(f"The class {root / name} has no pictures: put some there, or remove the folder.")
    return found


def _pictures(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    return [
        Path(place) / name
        for place, _, names in os.walk(folder, onerror=fail)
        for name in names
        if not name.startswith(".") and name.lower() not in _NO_PICTURES
    ]


def _divide(classes: Mapping[str, Sequence[Path]], fraction: float) -> tuple[dict[str, list[Path]], ...]:
    """By a hash of each name, so that a picture stays on its side when others come or go."""
    train, test = {}, {}
    for name, pictures in classes.items():
        if len(pictures) < 2:
            raise UserError(f"The class {name} has one picture only, which cannot be for training and for testing.")
        order = sorted(pictures, key=lambda picture: sha256(picture.name.encode(errors="surrogateescape")).digest())
        count = min(max(1, round(fraction * len(order))), len(order) - 1)
        train[name], test[name] = sorted(order[count:]), sorted(order[:count])
    return train, test


def _source(root: Path, classes: tuple[str, ...], split: str, pictures: Mapping[str, Sequence[Path]]) -> Source:
    named = [(label, picture) for label, name in enumerate(classes) for picture in pictures.get(name, ())]
    digest = sha256()
    for label, picture in named:
        about = picture.stat()
        line = f"{label}\0{picture.relative_to(root)}\0{about.st_size}\0{about.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))

    def read(i: int) -> Encoded:
        label, picture = named[i]
        name = str(picture.relative_to(root)).encode(errors="backslashreplace").decode(errors="replace")
        try:
            return Encoded(name, picture.read_bytes(), label)
        except OSError as error:
            return Encoded(name, b"", label, fault=error.strerror or str(error))

    key = {"data": "image_folder", "classes": classes, "files": digest.hexdigest()}
    return Source(f"{root.name}-{split}", key, partial(Files, classes, len(named), read))


DATASETS = {"image_folder": Builder(load)}
