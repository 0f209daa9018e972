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
_NO_FOLDERS = frozenset({"@eaDir", "__MACOSX"})


def load(request: Request) -> Dataset:
    """Every file below a class's folder is one of its pictures, but hidden ones and what file managers leave behind.

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
    halves = {child.name.casefold(): child for child in sorted(root.iterdir()) if child.is_dir()}
    if "train" in halves and "test" in halves:
        train, test = _classes(halves["train"]), _classes(halves["test"], least=1)
        unknown = [name for name in test if name not in train]
        if unknown:
            raise UserError(
                f"{halves['test']} has a class {unknown[0]!r}, of which {halves['train']} has no pictures: put some in."
            )
    else:
        one = next((halves[half] for half in ("train", "test") if half in halves), None)
        if one is not None and any(child.is_dir() and _may_hold_pictures(child.name) for child in one.iterdir()):
            raise UserError(
                f"{root} has a folder {one.name} with folders in it, and not both train and test: make the other, or "
                f"put the classes' folders into {root} itself, and a share is kept for testing (data.test_fraction)."
            )
        train, test = _divide(root, _classes(root), request.test_fraction)
    classes = tuple(train)
    sources = [_source(root, classes, split, pictures) for split, pictures in (("train", train), ("test", test))]
    return limited(load_splits(request, *sources), request)


def _classes(root: Path, least: int = 2) -> dict[str, list[Path]]:
    """The pictures of each class, in the order of their names; `least`: how many classes there must be."""
    try:
        folders = sorted(child for child in root.iterdir() if child.is_dir() and _may_hold_pictures(child.name))
        found = {folder.name: sorted(_pictures(folder)) for folder in folders}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if len(found) < least:
        raise UserError(f"{root} must have one folder of pictures for each class, and has {len(found)}.")
    for name, pictures in found.items():
        if not pictures:
            raise UserError(f"The class {root / name} has no pictures: put some there, or remove the folder.")
    return found


def _may_hold_pictures(folder: str) -> bool:
    return not folder.startswith(".") and folder not in _NO_FOLDERS


def _pictures(folder: Path) -> list[Path]:
    """Links are followed, but into no folder twice."""

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [folder for folder in folders if _may_hold_pictures(folder)]
        if real not in seen:
            found += [Path(place) / n for n in names if not n.startswith(".") and n.lower() not in _NO_PICTURES]
        seen.add(real)
    return found


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


def _source(root: Path, classes: tuple[str, ...], split: str, pictures: Mapping[str, Sequence[Path]]) -> Source:
    named = [(label, picture) for label, name in enumerate(classes) for picture in pictures.get(name, ())]
    digest = sha256(str(root).encode(errors="surrogateescape"))
    for label, picture in named:
        try:
            about = picture.stat()
            state = f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"
        except OSError as error:
            state = error.strerror or str(error)
        digest.update(f"{label}\0{picture.relative_to(root)}\0{state}\n".encode(errors="surrogateescape"))

    def read(i: int) -> Encoded:
        label, picture = named[i]
        name = str(picture.relative_to(root)).encode(errors="backslashreplace").decode(errors="replace")
        try:
            if not picture.is_file():
                return Encoded(name, b"", label, fault="no such file" if not picture.exists() else "no ordinary file")
            return Encoded(name, picture.read_bytes(), label)
        except PermissionError as error:
            return Encoded(name, b"", label, fault=error.strerror or str(error))
        except OSError as error:  # of the disk or the network, which may pass; the picture is not to blame
            raise UserError(f"{picture} cannot be read ({error.strerror or error}).") from error

    key = {"data": "image_folder", "classes": classes, "files": digest.hexdigest()}
    return Source(f"{root.name}-{split}", key, partial(Files, classes, len(named), read))


DATASETS = {"image_folder": Builder(load, seeded=True)}
