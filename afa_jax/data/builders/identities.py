"""Pictures of identities, a folder each, of which some are trained on and others verified.

`<identity>/*`, of which `data.held_out` identities are chosen by the seed to be verified; or `train/<identity>/*` and
`test/<identity>/*`, which have no identity in common. Where the folder has a table `landmarks.csv` (see
`alignment.read_landmarks`) every picture is aligned by its five points, otherwise it is resized. The labels of the test
split count the identities that are held out, `Dataset.held_out`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from afa_jax.data import folders
from afa_jax.data.alignment import LANDMARKS, read_landmarks
from afa_jax.data.cache import load_splits
from afa_jax.data.dataset import Builder, Dataset, Request, limited
from afa_jax.errors import UserError

Pictures = Mapping[str, list[Path]]


def load(request: Request) -> Dataset:
    """The identities in `request.folder`.

    Raises:
      UserError: there is no such folder, or as `load_from`.
    """
    if not request.folder:
        raise UserError("The data set identities needs to know where they are: give --config.data.dir=FOLDER.")
    return load_from(folders.existing(request.folder), "identities", request)


def load_from(root: Path, name: str, request: Request) -> Dataset:
    """The identities in a folder, as the data set `name`.

    Raises:
      UserError: too few identities, one of them for training and for verification, or with a single image to verify; a
        file that is no image, or has no landmarks where others have.
    """
    train, test = _divided(root, request)
    _check_pairs({identity: len(pictures) for identity, pictures in test.items()})
    landmarks = _landmarks(root, (train, test))
    sources = [
        folders.source(root, name, split, tuple(pictures), pictures, landmarks)
        for split, pictures in (("train", train), ("test", test))
    ]
    data = replace(load_splits(request, *sources), held_out=tuple(test))
    counts = np.bincount(data.test.labels, minlength=len(test)).tolist()
    _check_pairs(dict(zip(test, counts, strict=True)))  # again, for some may be damaged
    return limited(data, request)


def hold_out(identities: Sequence[str], count: int, seed: int) -> list[str]:
    """The `count` identities that are verified, in the order of their names.

    They are chosen by a hash of seed and name, so that few change sides when others come or go, and fewer are among
    more.
    """

    def place(identity: str) -> bytes:
        return sha256(f"{seed}/{identity}".encode(errors="surrogateescape")).digest()

    return sorted(sorted(identities, key=place)[:count])


def check_held_out(count: int, identities: int, where: str) -> None:
    """Holds that so many of the identities can be held out.

    Raises:
      UserError: fewer than two would be verified or trained on.
    """
    if not 2 <= count <= identities - 2:
        raise UserError(
            f"data.held_out is {count}, of {identities} identities in {where}: two or more must be held out and two or "
            f"more trained on; set it to 2 at least and {identities - 2} at most."
        )


def _divided(root: Path, request: Request) -> tuple[Pictures, Pictures]:
    """(those that are trained on, those that are verified)."""
    halves = folders.halves(root, "some identities are held out (data.held_out)")
    if halves:
        train, test = (folders.pictures_of(half, "identity") for half in halves)
        both = sorted(set(train) & set(test))
        if both:
            raise UserError(
                f"The identity {both[0]}{f' and {len(both) - 1} more' if len(both) > 1 else ''} is in {halves[0]} and "
                f"in {halves[1]}: who is verified must not be trained on; remove it from one of them."
            )
        return train, test
    found = folders.pictures_of(root, "identity", least=4)
    check_held_out(request.held_out, len(found), str(root))
    held = set(hold_out(tuple(found), request.held_out, request.seed))
    return {i: p for i, p in found.items() if i not in held}, {i: p for i, p in found.items() if i in held}


def _check_pairs(images: Mapping[str, int]) -> None:
    """Holds that each identity that is verified has a genuine pair; `images` is how many it has."""
    single = [identity for identity, count in images.items() if count < 2]
    if single:
        more = f", and so do {len(single) - 1} more" if len(single) > 1 else ""
        count = {0: "no image", 1: "one image only"}[images[single[0]]]
        raise UserError(
            f"The identity {single[0]} is held out to be verified and has {count}, which makes no genuine pair{more}: "
            "add images, or take the identity away."
        )


def _landmarks(root: Path, splits: Sequence[Pictures]) -> dict[str, np.ndarray] | None:
    """Those of every picture, by its name below `root`; None where the folder has no table."""
    file = root / LANDMARKS
    if not file.exists():
        return None
    landmarks = read_landmarks(file)
    names = [picture.relative_to(root).as_posix() for split in splits for found in split.values() for picture in found]
    missing = [name for name in names if name not in landmarks]
    if missing:
        raise UserError(
            f"{file} has no line for {missing[0]}{f' and {len(missing) - 1:,} more' if len(missing) > 1 else ''}: add "
            f"{'them' if len(missing) > 1 else 'it'}, or remove the table, and all pictures are resized."
        )
    return landmarks


DATASETS = {"identities": Builder(load, seeded=True, verified=True)}
