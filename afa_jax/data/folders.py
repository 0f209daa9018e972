"""Folders of pictures: what lies in them, and a split of them as the cache wants it."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from afa_jax.data.alignment import TEMPLATE
from afa_jax.data.cache import Encoded, Files, Source
from afa_jax.errors import UserError
from afa_jax.files import user_path

_NO_PICTURES = frozenset({"thumbs.db", "desktop.ini"})  # what file managers leave behind
_NO_FOLDERS = frozenset({"@eaDir", "__MACOSX"})


def existing(folder: str | Path) -> Path:
    """The absolute path of a folder as `data.dir` has it.

    Raises:
      UserError: there is none.
    """
    root = user_path(folder).absolute()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}, which data.dir names.")
    return root


def halves(root: Path, otherwise: str) -> tuple[Path, Path] | None:
    """Its folders `train` and `test`, in capitals or not; None where the folders in it are those of pictures.

    Args:
      otherwise: what is done where there are no halves, for a person.

    Raises:
      UserError: it has one of them, with folders in it, and not the other.
    """
    found = {child.name.casefold(): child for child in sorted(root.iterdir()) if child.is_dir()}
    if "train" in found and "test" in found:
        return found["train"], found["test"]
    one = next((found[half] for half in ("train", "test") if half in found), None)
    if one is not None and any(child.is_dir() and _may_hold_pictures(child.name) for child in one.iterdir()):
        raise UserError(
            f"{root} has a folder {one.name} with folders in it, and not both train and test: make the other, or "
            f"put the folders of pictures into {root} itself, and {otherwise}."
        )
    return None


def pictures_of(root: Path, kind: str, least: int = 2) -> dict[str, list[Path]]:
    """The pictures in each folder of `root`, by its name, in the order of the names.

    Every file at any depth is a picture, but hidden ones and what file managers leave behind.

    Args:
      kind: what a folder is, for a person: `class`.
      least: how many folders there must be.

    Raises:
      UserError: there are fewer, one is empty, or one cannot be read.
    """
    try:
        folders = sorted(child for child in root.iterdir() if child.is_dir() and _may_hold_pictures(child.name))
        found = {folder.name: sorted(pictures(folder)) for folder in folders}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if len(found) < least:
        raise UserError(f"{root} must have one folder of pictures for each {kind}, and has {len(found)}.")
    for name, inside in found.items():
        if not inside:
            raise UserError(f"The {kind} {root / name} has no pictures: put some there, or remove the folder.")
    return found


def _may_hold_pictures(folder: str) -> bool:
    return not folder.startswith(".") and folder not in _NO_FOLDERS


def pictures(folder: Path) -> Iterator[Path]:
    """The pictures in a folder at any depth, the names in it in order, without a list of all.

    Links are followed, but into no folder twice.

    Raises:
      OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(folder for folder in folders if _may_hold_pictures(folder))
        if real not in seen:
            yield from (
                Path(place) / n for n in sorted(names) if not n.startswith(".") and n.lower() not in _NO_PICTURES
            )
        seen.add(real)


def source(
    root: Path,
    data: str,
    split: str,
    classes: tuple[str, ...],
    pictures: Mapping[str, list[Path]],
    landmarks: Mapping[str, np.ndarray] | None = None,
) -> Source:
    """A split of the pictures in `root`, labelled by their places in `classes`.

    Args:
      data: the data set's name in the catalogue.
      landmarks: five points of every picture, `[5, 2]`, by its name below `root`, to which it is aligned.
    """
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
        points = landmarks[picture.relative_to(root).as_posix()] if landmarks is not None else None
        try:
            if not picture.is_file():
                return Encoded(name, b"", label, fault="no such file" if not picture.exists() else "no ordinary file")
            return Encoded(name, picture.read_bytes(), label, landmarks=points)
        except PermissionError as error:
            return Encoded(name, b"", label, fault=error.strerror or str(error))
        except OSError as error:  # of the disk or the network, which may pass; the picture is not to blame
            raise UserError(f"{picture} cannot be read ({error.strerror or error}).") from error

    key: dict[str, Any] = {"data": data, "classes": classes, "files": digest.hexdigest()}
    if landmarks is not None:
        points = sha256(np.stack([landmarks[p.relative_to(root).as_posix()] for _, p in named]).tobytes())
        key |= {"landmarks": points.hexdigest(), "template": TEMPLATE.tolist()}
    return Source(f"{root.name}-{split}", key, partial(Files, classes, len(named), read))
