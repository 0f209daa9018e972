"""A published data set from its official archive, through a TFDS builder that never imports TensorFlow."""

import gzip
import io
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from absl import logging

from afa_jax.data.cache import Encoded, Files, Source, load_splits, one_at_a_time
from afa_jax.data.dataset import Builder, Dataset, Request, limited
from afa_jax.download import fetch
from afa_jax.errors import UserError
from afa_jax.files import cache_folder, locked


class Entry(NamedTuple):
    """Which split an image of the archive belongs to, its label, and what else is known of it."""

    split: str
    label: int
    extras: Mapping[str, np.ndarray] = {}  # never changed


class Index(NamedTuple):
    """What an archive's own lists say; `entries` by the member's path."""

    classes: tuple[str, ...]
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Archive:
    """What is particular to one data set.

    Attributes:
      images: URL of the tar archive with the images; `#sha256=…` behind it where the digest is known.
      lists: URLs of further files, by the name under which `index` finds them.
      index: reads the lists; of the paths of all these files, the archive's under `images`.
      totals: how many images each split must have.
      classes: how many there must be.
      extras: shapes of what is known of each image, float32, by name.
    """

    name: str
    version: str
    description: str
    homepage: str
    images: str
    index: Callable[[Mapping[str, Path]], Index]
    classes: int
    totals: Mapping[str, int] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def load(archive: Archive, request: Request, train: str = "train", test: str = "test") -> Dataset:
    """Two splits of the archive, fetched, prepared and decoded as far as they are not yet."""
    key = {"data": archive.name, "version": archive.version}
    sources = (
        Source(f"{archive.name}-{split}", {**key, "split": split}, partial(_open, archive, split))
        for split in (train, test)
    )
    return load_splits(request, *sources)


def standard(archive: Archive) -> dict[str, Builder]:
    """The catalogue's entry for an archive that says what is for training and what for testing."""
    return {archive.name: Builder(lambda request: limited(load(archive, request), request))}


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a tar archive, compressed or not, in the order in which they are there.

    Raises:
      UserError: it is no whole archive.
    """
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name.removeprefix("./"), content
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is no whole tar archive ({error}): remove it, and fetch it again.") from error


def read_members(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of some files of a tar archive.

    Raises:
      UserError: the archive lacks one, or is not whole.
    """
    found = {}
    for name, content in members(path):
        if name in wanted:
            found[name] = content.read()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path} has no {missing[0]}: it is not the published archive; remove it.")
    return found


def _open(archive: Archive, split: str) -> Files:
    import tensorflow_datasets as tfds  # half a second, and only where something is decoded

    builder = prepared(archive)

    def read(i: int) -> Encoded:
        with readable(builder):
            record = records[i]
            extras = {name: np.asarray(record[name], np.float32) for name in archive.extras}
            return Encoded(record["file"].decode(), record["image"], int(record["label"]), extras)

    with readable(builder):
        records: Any = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        # Without this file TFDS would make up names.
        names = (Path(builder.data_dir) / "label.labels.txt").read_text(encoding="utf-8").splitlines()
        return Files(names, len(records), one_at_a_time(read))


@contextmanager
def readable(builder: Any) -> Iterator[None]:
    """Says of records that cannot be read which folder to remove."""
    try:
        yield
    except Exception as error:  # TFDS and its file format raise what they like
        raise UserError(
            f"The records in {builder.data_dir} cannot be read ({type(error).__name__}): remove that folder, and they "
            "are made anew."
        ) from error


def prepared(archive: Archive) -> Any:
    """The TFDS builder, with its records written; they are made once, from an archive that is fetched once.

    Raises:
      UserError: an archive can neither be fetched nor is in its place, or is not the published one.
    """
    place = cache_folder() / "tfds"
    try:
        with locked(place / f".{archive.name}.lock", wait=True):
            for half in (place / archive.name).glob("incomplete.*"):  # of a process that was killed
                shutil.rmtree(half, ignore_errors=True)
            try:
                builder = _builder_class(archive)(data_dir=place, file_format="array_record")
            except OSError:
                raise
            except Exception as error:  # it reads what it finds of an earlier preparation
                folder = place / archive.name
                raise UserError(f"The records in {folder} are damaged: remove that folder.") from error
            return prepare(builder)
    except (OSError, RuntimeError) as error:  # the second from the records' own format
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[0]
        raise UserError(
            f"{place} cannot be written or read ({reason}): make room there, or move the cache with AFA_JAX_CACHE."
        ) from error


def prepare(builder: Any) -> Any:
    """A TFDS builder with its records written as they were encoded."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import shuffle

    if not builder.is_prepared():
        # Above this many bytes a split would go through TensorFlow's files; all of it passes through memory.
        shuffle.MAX_MEM_BUFFER_SIZE = 1 << 40
        tfds.disable_progress_bar()
        print(f"{builder.name}: its images are fetched if they must be, and written as records, once.", file=sys.stderr)
        with redirect_stdout(io.StringIO()):  # TFDS says more, of sizes that it does not know
            builder.download_and_prepare(
                download_dir=cache_folder() / "archives",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    return builder


def _builder_class(archive: Archive) -> Any:
    import tensorflow_datasets as tfds

    logging.set_verbosity(logging.ERROR)  # it warns of a folder that is not prepared yet

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = archive.name
        VERSION = tfds.core.Version(archive.version)

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(doc="as it was published, of any size"),
                "label": tfds.features.ClassLabel(num_classes=archive.classes),
                "file": tfds.features.Text(),
                **{
                    extra: tfds.features.Tensor(shape=shape, dtype=np.float32)
                    for extra, shape in archive.extras.items()
                },
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=archive.description,
                homepage=archive.homepage,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            urls = {"images": archive.images, **archive.lists}
            paths = {name: fetch(url, f"archives/{archive.name}") for name, url in urls.items()}
            try:
                index = _checked(archive, archive.index(paths), paths["images"])
            except (ValueError, KeyError, IndexError) as error:
                where = paths["images"].parent
                raise UserError(f"The lists of {archive.name} in {where} are damaged: remove them.") from error
            features: Any = self.info.features
            features["label"].names = index.classes
            splits = dict.fromkeys(entry.split for entry in index.entries.values())
            return {split: self._generate_examples(paths["images"], index, split) for split in splits}

        def _generate_examples(self, path: Path, index: Index, split: str) -> Iterator[tuple[str, Any]]:
            missing = {name for name, entry in index.entries.items() if entry.split == split}
            for name, content in members(path):
                if name in missing:
                    missing.remove(name)
                    entry = index.entries[name]
                    yield name, {"image": content.read(), "label": entry.label, "file": name, **entry.extras}
            if missing:
                raise UserError(
                    f"{path} lacks {len(missing):,} of the images that its lists name, {min(missing)} among them: it "
                    "is not the whole published archive; remove it, and fetch it again."
                )

    return Builder


def _checked(archive: Archive, index: Index, path: Path) -> Index:
    """The index, if it has as many classes and images as were published."""
    labels = {entry.label for entry in index.entries.values()}
    missing = [name for label, name in enumerate(index.classes) if label not in labels]
    if len(index.classes) != archive.classes or missing:
        lacking = f", and none of {missing[0]}" if missing else ""
        raise UserError(
            f"{path} has images of {len(labels)} classes{lacking}, where {archive.name} has {archive.classes}: it is "
            "not the whole published archive; remove it, and fetch it again."
        )
    found = Counter(entry.split for entry in index.entries.values())
    for split, total in archive.totals.items():
        if found[split] != total:
            raise UserError(
                f"{archive.name} has {total:,} {split} images, and the lists beside {path} name {found[split]:,}: they "
                "are not the published ones; remove them, and fetch them again."
            )
    return index
