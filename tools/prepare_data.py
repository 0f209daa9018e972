"""Fetches, checks and decodes a data set ahead of time, and shows what is in it.

    python tools/prepare_data.py caltech256
    python tools/prepare_data.py image_folder --dir photos --sheet photos.png

A run does the same when it starts; this is for a machine without GPU, or to look before training. Prints the counts,
the size of the cache and the class table, and writes a picture with images of each class.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afa_jax.config import default, settle
from afa_jax.data import catalog
from afa_jax.data.contact_sheet import contact_sheet
from afa_jax.data.dataset import Dataset, Request, Split
from afa_jax.errors import UserError
from afa_jax.evaluation.verification import count_pairs, smallest_far
from afa_jax.files import cache_folder, whole
from afa_jax.plan import data_request


def describe(data: Dataset) -> str:
    """Counts of both splits, and of each class; those that are held out come last."""
    names = dict.fromkeys((*data.classes, *data.held_out))
    width = max(len(name) for name in (*names, "class"))
    counts = [_counts(data.train, data.classes), _counts(data.test, data.test_classes)]
    lines = [f"{'class':<{width}}  training  test"]
    lines += [f"{name:<{width}}  {counts[0].get(name, 0):>8,}  {counts[1].get(name, 0):>4,}" for name in names]
    held_out = f" and {len(data.held_out):,} held out" if data.held_out else ""
    images = f"{len(data.train):,} training images, {len(data.test):,} test images"
    lines.append(f"{len(data.classes):,} classes{held_out}, {images}")
    if data.held_out:
        genuine, impostors = count_pairs(data.test.labels)
        far = f"; the smallest false accept rate is {smallest_far(impostors):g}" if impostors else ""
        lines.append(f"{genuine:,} genuine and {impostors:,} impostor pairs are verified{far}")
    if data.damaged:
        lines.append(f"{len(data.damaged):,} left out, no images: {', '.join(data.damaged)}")
    return "\n".join(lines)


def _counts(split: Split, classes: Sequence[str]) -> dict[str, int]:
    return dict(zip(classes, np.bincount(split.labels, minlength=len(classes)).tolist(), strict=True))


def _request(options: argparse.Namespace) -> Request:
    sides = (112, 112) if catalog.find(options.name).verified else (256, 224)
    config = default()
    config.seed = options.seed
    config.data.update(
        name=options.name,
        dir=options.dir,
        resize=options.resize or sides[0],
        image_size=options.crop or sides[1],
        augmentation=options.augmentation,
        per_class=options.per_class,
        test_fraction=options.test_fraction,
        held_out=options.held_out,
        splits=options.splits,
        skip_damaged=options.skip_damaged,
    )
    return data_request(settle(config))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="as config.data.name")
    parser.add_argument("--dir", default="", help="as config.data.dir")
    parser.add_argument("--resize", type=int, help="side in pixels; 256, or 112 of identities; 320 for Inception-V3")
    parser.add_argument("--crop", type=int, help="side in pixels; 224, or 112 of identities; 299 for Inception-V3")
    parser.add_argument("--augmentation", default="default", help="as config.data.augmentation")
    parser.add_argument("--per-class", type=int, default=0, help="as config.data.per_class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-fraction", type=float, default=0.2, help="as config.data.test_fraction")
    parser.add_argument("--held-out", type=int, default=80, help="as config.data.held_out")
    parser.add_argument("--splits", default="train,test", help="as config.data.splits")
    parser.add_argument("--skip-damaged", action="store_true")
    parser.add_argument("--sheet", type=Path, help="where the picture goes; <name>.png if not given")
    options = parser.parse_args(argv)
    sheet = options.sheet or Path(f"{options.name.replace(':', '-').replace('/', '-')}.png")
    try:
        request = _request(options)
        if not sheet.absolute().parent.is_dir():
            raise UserError(f"There is no folder {sheet.absolute().parent} for the picture.")
        data = catalog.load(options.name, request)
        with whole(sheet) as partial:
            contact_sheet(data).save(partial, "PNG")
    except UserError as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"prepare_data: {error.filename} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare_data: stopped; nothing half-made is left.", file=sys.stderr)
        return 130
    whole_ones = (file for file in (cache_folder() / "images").glob("*/images.npy") if file.parent.suffix != ".partial")
    kept = sum(file.stat().st_size for file in whole_ones)
    print(describe(data))
    print(
        f"An image takes {data.train.images[0].nbytes / 1e3:,.0f} kB; the cache {cache_folder()} holds "
        f"{kept / 1e9:,.2f} GB of decoded ones; {sheet} shows some."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
