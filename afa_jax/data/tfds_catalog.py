"""Any image-classification set of the TFDS catalogue, as `tfds:<name>`: `--config.data.name=tfds:oxford_flowers102`.

TensorFlow is not needed here, but many of TFDS's builders read their archives with it. Where it is missing, prepare the
set elsewhere with `file_format="array_record"` and name its folder: `--config.data.dir=…`.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

from afa_jax.data.archive import prepare, readable
from afa_jax.data.cache import Encoded, Files, Source, load_splits, one_at_a_time
from afa_jax.data.dataset import Builder, Dataset, Request, limited
from afa_jax.errors import UserError
from afa_jax.files import cache_folder, locked, user_path

PREFIX = "tfds:"


def load(name: str, request: Request) -> Dataset:
    """The two splits that `request.splits` names, from TFDS's records in `request.folder`, or else in the cache.

    Raises:
      UserError: TFDS has no such set or split, cannot prepare it here, or it is not one image and one label each.
    """
    splits = tuple(part.strip() for part in request.splits.split(","))
    if len(splits) != 2:
        raise UserError(f"config.data.splits is {request.splits!r}; it must name two, for training and for testing.")
    place = str(user_path(request.folder).absolute()) if request.folder else str(cache_folder() / "tfds")
    builder = _prepared(name, place) if request.folder else _builder(name, place)
    # Records that are not our own may be made anew under the same version.
    records = sorted(Path(builder.data_dir).glob("*")) if request.folder else []
    key = {"data": builder.info.full_name, "place": place, "times": [path.stat().st_mtime_ns for path in records]}
    sources = (
        Source(f"{builder.name}-{split}", {**key, "split": split}, partial(_open, name, place, split))
        for split in splits
    )
    return limited(load_splits(request, *sources), request)


@cache
def _builder(name: str, place: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=place, file_format="array_record", try_gcs=False)
    except Exception as error:
        raise UserError(f"TFDS cannot offer {name!r}: {_one_line(error)}") from error


def _prepared(name: str, place: str) -> Any:
    """The builder, with its records written."""
    builder = _builder(name, place)
    try:
        with locked(cache_folder() / "tfds" / f".{builder.name}.lock", wait=True):
            if not builder.is_prepared():
                prepare(builder)
            else:  # perhaps by another process, after this builder was made, which then knows no splits
                builder = _builder.__wrapped__(name, place)
    except Exception as error:  # TFDS's many builders raise what they like, TensorFlow's absence among it
        raise UserError(f"TFDS cannot prepare {name} here: {_one_line(error)}") from error
    return builder


def _open(name: str, place: str, split: str) -> Files:
    import tensorflow_datasets as tfds

    builder = _prepared(name, place)
    features: Any = builder.info.features
    kinds = {kind: [key for key, feature in features.items() if isinstance(feature, kind)] for kind in _kinds(tfds)}
    images, labels = kinds.values()
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"The TFDS set {name} has {len(images)} images and {len(labels)} labels an example, not one each."
        )
    image, label = images[0], labels[0]
    try:
        records = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
    except Exception as error:
        raise UserError(f"TFDS cannot read the split {split!r} of {name}: {_one_line(error)}") from error

    def read(i: int) -> Encoded:
        with readable(builder):
            record = records[i]
            return Encoded(f"{name}/{split}/{i}", record[image], int(record[label]))

    return Files(features[label].names, len(records), one_at_a_time(read))


def _kinds(tfds: Any) -> tuple[type, type]:
    return tfds.features.Image, tfds.features.ClassLabel


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[0].split()).rstrip(".") + "."


def named(name: str) -> Builder:
    """The catalogue's entry for `tfds:<name>`."""
    return Builder(partial(load, name.removeprefix(PREFIX)))
