"""Images are decoded and resized once; what is kept of them is one array, read through the memory's map."""

import json
import os
import re
import shutil
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from afa_jax.data.alignment import align
from afa_jax.data.dataset import Dataset, Request, Split
from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError
from afa_jax.files import cache_folder, locked, write_json

_FORMAT = 1
"""Of the cache's files; a change makes them anew."""
_HEADER = 128  # bytes of a .npy file before its numbers
_TOLD = 200  # damaged files named in a message


@dataclass(frozen=True)
class Encoded:
    """One image as it is on disk."""

    file: str
    data: bytes
    label: int
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    fault: str = ""
    """Why it could not be read."""
    landmarks: np.ndarray | None = None
    """Five points of a face, `[5, 2]`, to which the image is aligned; they must be part of the source's key."""


@dataclass(frozen=True)
class Files:
    """A split before it is decoded; `read` is called from several threads."""

    classes: Sequence[str]
    count: int
    read: Callable[[int], Encoded]


@dataclass(frozen=True)
class Source:
    """Where a split comes from: a name for people, what identifies its encoded images, and how to open them."""

    name: str
    key: Mapping[str, Any]
    open: Callable[[], Files]


@dataclass(frozen=True)
class Cached:
    """A split after it is decoded.

    Attributes:
      damaged: the files that are no images, with the reason.
      digest: of pixels, labels and names.
    """

    classes: tuple[str, ...]
    split: Split
    damaged: tuple[str, ...]
    digest: str


class DamagedError(UserError):
    """Some files are no images; `files` has them with the reason."""

    def __init__(self, files: Sequence[str]):
        self.files = tuple(files)
        more = f", and {len(files) - _TOLD:,} more" if len(files) > _TOLD else ""
        super().__init__(
            f"{len(files):,} {'file is no image' if len(files) == 1 else 'files are no images'}: "
            f"{', '.join(files[:_TOLD])}{more}; mend or remove them, or leave them out with "
            "--config.data.skip_damaged=True."
        )


def load_splits(request: Request, train: Source, test: Source) -> Dataset:
    """Both splits, whole, in the form that the request wants.

    Raises:
      DamagedError, UserError: as `cached`; the damaged files of both splits are told at once.
      UserError: a split has no images, or one without a label.
    """
    forms = {"default": ("square", "square"), "improved": ("middle", "whole")}[request.augmentation]
    found, damaged = [], []
    for form, source in zip(forms, (train, test), strict=True):
        try:
            found.append(cached(source, form, request.size, skip_damaged=request.skip_damaged))
        except DamagedError as error:
            damaged += error.files
    if damaged:
        raise DamagedError(list(dict.fromkeys(damaged)))
    for source, of in zip((train, test), found, strict=True):
        labels = of.split.labels
        if not len(labels):
            raise UserError(f"{source.name} has no images.")
        if labels.min() < 0 or labels.max() >= len(of.classes):
            raise UserError(f"{source.name} has images without a label: choose another split.")
    left = dict.fromkeys(file for of in found for file in of.damaged)
    key = "-".join(of.digest for of in found)
    return Dataset(found[0].classes, found[0].split, found[1].split, key, tuple(left))


def cached(source: Source, form: str, size: int, *, skip_damaged: bool) -> Cached:
    """A split in a form of `images.FORMS`, from the cache, or decoded into it.

    Two processes may ask at once; one decodes and the other waits. A build that is stopped leaves nothing that a later
    one would take for whole, and what is found damaged is made anew.

    Args:
      source: is opened only where it is not decoded yet; its key, the form, the size and the decoder's version name the
        folder in the cache.
      size: side in pixels, see `FORMS`.

    Raises:
      DamagedError: some files are no images, and `skip_damaged` is false.
      UserError: the cache cannot be written, or the disk is full.
    """
    decoder = {"format": _FORMAT, "pillow": PIL.__version__, "jpeg": features.version("libjpeg_turbo")}
    whole_key = {**decoder, "form": form, "size": size, **source.key}
    digest = sha256(json.dumps(whole_key, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "-", source.name)[:60]
    folder = cache_folder() / "images" / f"{name}-{form}{size}-{digest}"
    try:
        found = _open(folder, form)
        if found is None:
            with locked(folder.with_name(f".{folder.name}.lock"), wait=True):
                found = _open(folder, form)  # another process may have made it meanwhile
                if found is None:
                    _build(folder, form, size, whole_key, source, skip_damaged)
                    found = _open(folder, form)
        if found is None:
            raise UserError(f"The cache {folder} cannot be read back: remove it, and it is made anew.")
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} cannot be written or read ({error.strerror or error}): make room there, or "
            "move it with AFA_JAX_CACHE."
        ) from error
    if found.damaged and not skip_damaged:
        raise DamagedError(found.damaged)
    return found


def _build(folder: Path, form: str, size: int, key: Mapping[str, Any], source: Source, skip_damaged: bool) -> None:
    files = source.open()
    _remove_what_kills_left(folder.parent)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if form != "whole":
            _check_room(partial, files.count * size * size * 3)
        kept, damaged, digest = _decode_all(partial / "images.npy", source.name, form, size, files)
        if damaged and not skip_damaged:
            raise DamagedError(damaged)
        np.save(partial / "labels.npy", np.array([image.label for image in kept], np.int32))
        for extra in kept[0].extras if kept else ():
            np.save(partial / f"extra-{extra}.npy", np.stack([image.extras[extra] for image in kept]))
        extras = sorted(kept[0].extras) if kept else []
        about = {
            "key": dict(key),
            "extras": extras,
            "classes": list(files.classes),
            "damaged": damaged,
            "digest": digest,
        }
        write_json(partial / "about.json", about | {"files": [image.file for image in kept]})
        if folder.exists():
            print(f"{folder} was damaged and has been made anew.", file=sys.stderr)
            shutil.rmtree(folder)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_what_kills_left(images: Path) -> None:
    """Removes the halves of builds that nobody is at."""
    for half in images.glob("*.partial"):
        with suppress(BlockingIOError), locked(half.with_name(f".{half.stem}.lock"), wait=False):
            shutil.rmtree(half, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The decoded images need {needed / 1e6:,.0f} MB, and the disk of {folder.parent} has {free / 1e6:,.0f} MB "
            "left: make room there, or move the cache with AFA_JAX_CACHE."
        )


def _decode_all(path: Path, name: str, form: str, size: int, files: Files) -> tuple[list[Encoded], list[str], str]:
    """Writes all images, one after the other.

    Returns:
      What is known of them, the files that are none, and a digest of pixels, labels and names.
    """
    kept, damaged, shapes, digest = [], [], [], sha256()

    def work(i: int) -> tuple[Encoded, np.ndarray | None, str]:
        image = files.read(i)
        if image.fault:
            return image, None, image.fault
        try:
            decoded = decode(image.data)
            points = image.landmarks
            pixels = resize(decoded, size, form) if points is None else align(decoded, points, size)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise what they like
            return image, None, _reason(error, image)
        extras = {**image.extras, "original_size": np.array(decoded.size, np.int32)}
        return Encoded(image.file, b"", image.label, extras), pixels, ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with path.open("wb") as file, bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow has to say of odd images; they are what they are
        task = bar.add_task(f"Decoding {name}", total=files.count)
        file.write(b" " * _HEADER)
        for image, pixels, reason in _in_order(work, files.count):
            if pixels is None:
                damaged.append(f"{image.file} ({reason})")
            else:
                content = pixels.tobytes()
                file.write(content)
                digest.update(f"{image.label} {pixels.shape} {image.file}\n".encode())
                digest.update(content)
                shapes.append(pixels.shape[:2])
                kept.append(image)
            bar.advance(task)
        whole = form == "whole"
        shape = (sum(3 * h * w for h, w in shapes),) if whole else (len(shapes), size, size, 3)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert file.tell() == _HEADER
        file.flush()
        os.fsync(file.fileno())  # it must be there before the folder has its name
    if whole:
        np.save(path.with_name("shapes.npy"), np.array(shapes, np.int64).reshape(-1, 2))
    return kept, damaged, digest.hexdigest()


def _reason(error: Exception, image: Encoded) -> str:
    if not image.data:
        return "it is empty"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "of no known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _in_order(work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`work(0)`, `work(1)`, … on all processors, of which few are ready before they are wanted."""
    # Decoding leaves Python's lock free, so threads are enough.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for i in range(count):
            waiting.append(pool.submit(work, i))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Ragged:
    """Images of different shapes, one after the other."""

    flat: np.ndarray
    begins: np.ndarray
    shapes: np.ndarray

    def __getitem__(self, i: Any, /) -> np.ndarray:
        height, width = self.shapes[i]
        return self.flat[self.begins[i] : self.begins[i] + 3 * height * width].reshape(height, width, 3)


def _open(folder: Path, form: str) -> Cached | None:
    """What is in the cache; None where there is nothing, or something damaged."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        labels, images = np.load(folder / "labels.npy"), np.load(folder / "images.npy", mmap_mode="r")
        extras = {path.stem.removeprefix("extra-"): np.load(path) for path in sorted(folder.glob("extra-*.npy"))}
        pictures: Any = images
        if form == "whole":
            shapes = np.load(folder / "shapes.npy")
            begins = np.cumsum([0, *(3 * h * w for h, w in shapes)])
            pictures = _Ragged(images, begins, shapes)
            whole = begins[-1] == len(images) and len(shapes) == len(labels)
        else:
            whole = len(images) == len(labels)
        columns = [labels, about["files"], *extras.values()]
        if not whole or any(len(column) != len(labels) for column in columns) or set(extras) != set(about["extras"]):
            return None
        split = Split(pictures, labels, about["files"], extras)
        return Cached(tuple(about["classes"]), split, tuple(about["damaged"]), about["digest"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, EOFError, TypeError):
        return None


def one_at_a_time(read: Callable[[int], Encoded]) -> Callable[[int], Encoded]:
    """For a reader that several threads may not use at once."""
    lock = threading.Lock()

    def guarded(i: int) -> Encoded:
        with lock:
            return read(i)

    return guarded
