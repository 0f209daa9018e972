"""A person's photos, found in folders of any size and read a batch at a time; the damaged ones are told, not fatal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from afa_jax.data.folders import pictures
from afa_jax.errors import UserError
from afa_jax.inference.classifier import batched


@dataclass(frozen=True)
class Photo:
    """A file and what was read of it: `pixels`, or why there are none."""

    file: Path
    pixels: np.ndarray | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """The file's path as text that every encoding can write."""
        return str(self.file).encode(errors="backslashreplace").decode(errors="replace")


def find(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths` and those in its folders at any depth, but hidden ones; there is no list of all.

    Raises:
      UserError: at once: a folder has none. On the way: a folder cannot be read.
    """
    for path in paths:
        if path.is_dir() and next(_in(path), None) is None:
            raise UserError(f"The folder {path} has no photos.")
    return (file for path in paths for file in (_in(path) if path.is_dir() else (path,)))


def _in(folder: Path) -> Iterator[Path]:
    try:
        yield from pictures(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error


def read(
    files: Iterable[Path], pixels: Callable[[Path], np.ndarray], batch_size: int, threads: int
) -> Iterator[list[Photo]]:
    """The photos, `batch_size` at a time and in order; while one batch is used the next is read.

    No more than two batches are in memory, however many files there are.

    Args:
      pixels: of a file; what it raises becomes the photo's fault.
      threads: that read and decode.
    """
    with ThreadPoolExecutor(threads, "photos") as pool:
        ahead: list[Future[Photo]] = []
        for batch in batched(files, batch_size):
            under_way = [pool.submit(_read, file, pixels) for file in batch]
            if ahead:
                yield [photo.result() for photo in ahead]
            ahead = under_way
        if ahead:
            yield [photo.result() for photo in ahead]


def _read(file: Path, pixels: Callable[[Path], np.ndarray]) -> Photo:
    try:
        return Photo(file, pixels(file))
    except FileNotFoundError:
        return Photo(file, fault="there is no such file")
    except UnidentifiedImageError:  # whose text names an object in memory
        return Photo(file, fault="no image that can be read")
    except OSError as error:
        # Pillow's errors for what is no image are OSErrors without a number.
        reason = error.strerror if error.errno else f"no image that can be read ({error})"
        return Photo(file, fault=str(reason))
    except Exception as error:  # Pillow's plugins raise what they like
        return Photo(file, fault=f"no image that can be read ({error})")


def stacked(batch: Sequence[Photo]) -> np.ndarray:
    """The pixels of photos that have them, in one array."""
    return np.stack([photo.pixels for photo in batch if photo.pixels is not None])
