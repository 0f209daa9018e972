"""CUB-200-2011: 5,994 and 5,794 photos of 200 kinds of birds, with parts and bounding boxes (Wah et al., 2011)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from afa_jax.data.archive import Archive, Entry, Index, read_members, standard

PARTS = 15
_LISTS = ("images", "image_class_labels", "train_test_split", "classes", "bounding_boxes", "parts/part_locs")


def index(paths: Mapping[str, Path]) -> Index:
    """The lists are in the archive itself; each line begins with the image's number."""
    files = {name: f"CUB_200_2011/{name}.txt" for name in _LISTS}
    contents = read_members(paths["images"], tuple(files.values()))
    rows = {name: [line.split() for line in contents[file].decode().splitlines()] for name, file in files.items()}
    parts = {number: np.zeros((PARTS, 3), np.float32) for number, _ in rows["images"]}
    for number, part, *values in rows["parts/part_locs"]:
        parts[number][int(part) - 1] = [float(value) for value in values]
    boxes = {number: np.array(values, np.float32) for number, *values in rows["bounding_boxes"]}
    labels, train = dict(rows["image_class_labels"]), dict(rows["train_test_split"])
    entries = {
        f"CUB_200_2011/images/{name}": Entry(
            "train" if train[number] == "1" else "test",
            int(labels[number]) - 1,
            {"parts": parts[number], "bounding_box": boxes[number]},
        )
        for number, name in rows["images"]
    }
    return Index(tuple(name for _, name in rows["classes"]), entries)


ARCHIVE = Archive(
    name="cub200_2011",
    version="1.0.0",
    description="Caltech-UCSD Birds. parts: x, y in pixels, visible; bounding_box: x, y, width, height, in pixels.",
    homepage="https://data.caltech.edu/records/65de6-vp158",
    images="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    "#sha256=0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
    index=index,
    classes=200,
    totals={"train": 5_994, "test": 5_794},
    extras={"parts": (PARTS, 3), "bounding_box": (4,)},
)

DATASETS = standard(ARCHIVE)
