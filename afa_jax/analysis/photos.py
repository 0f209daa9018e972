"""The photos that are looked at: some of the test split, or a person's own, as the network sees them."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from afa_jax.analysis.trained import TrainedRun
from afa_jax.data.dataset import Split
from afa_jax.data.images import centre_crop, decode, resize
from afa_jax.errors import UserError

UNKNOWN = -1
"""The label of a photo whose class nobody has told."""


def photos(run: TrainedRun, chosen: Sequence[Path], number: int) -> Split:
    """What is looked at: crops uint8 `[P, S, S, 3]`, labels (`UNKNOWN` for a person's own photos) and names.

    Args:
      chosen: files, and folders whose files are all taken; if there are none, the run's test images.
      number: of test images, spread evenly over the split, which many data sets sort by class.

    Raises:
      UserError: a file is not there or is no image, or a folder has none.
    """
    if chosen:
        files = [file for path in chosen for file in _files(path)]
        form = {"default": "square", "improved": "middle"}[run.experiment.data.augmentation]
        images = np.stack([_read(file, run.resize, form) for file in files])
        labels, names = np.full(len(files), UNKNOWN, np.int32), [file.name for file in files]
    else:
        split = run.test
        rows = np.unique(np.linspace(0, len(split) - 1, min(number, len(split))).round().astype(int))
        images, labels = split.images[rows], split.labels[rows]
        names = [Path(str(split.files[i])).name if split.files else f"test image {i}" for i in rows]
    return Split(np.ascontiguousarray(centre_crop(images, run.size)), labels, names)


def digest(split: Split) -> str:
    """Changes with the pixels, names and labels of the photos."""
    content = sha256(repr((list(split.files), split.labels.tolist())).encode())
    content.update(np.ascontiguousarray(split.images[:]).tobytes())
    return content.hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not found:
        raise UserError(f"The folder {path} has no photos.")
    return found


def _read(file: Path, size: int, form: str) -> np.ndarray:
    try:
        return resize(decode(file.read_bytes()), size, form)
    except FileNotFoundError as error:
        raise UserError(f"There is no photo {file}.") from error
    except Exception as error:  # Pillow's plugins raise what they like
        raise UserError(f"{file} is no image that can be read ({error}).") from error
