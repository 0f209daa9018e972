"""Food-101: 75,750 and 25,250 photos of 101 dishes; only the test labels were cleaned (Bossard et al., 2014).

To prepare it, 5 GB pass through memory at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from afa_jax.data.archive import Archive, Entry, Index, read_members, standard


def index(paths: Mapping[str, Path]) -> Index:
    """The lists in the archive give the images of each class, without `.jpg`."""
    files = {split: f"food-101/meta/{split}.json" for split in ("train", "test")}
    contents = read_members(paths["images"], tuple(files.values()))
    lists = {split: json.loads(contents[file]) for split, file in files.items()}
    classes = sorted(lists["train"])
    labels = {name: label for label, name in enumerate(classes)}
    entries = {
        f"food-101/images/{image}.jpg": Entry(split, labels[name])
        for split, named in lists.items()
        for name, images in named.items()
        for image in images
    }
    return Index(tuple(classes), entries)


ARCHIVE = Archive(
    name="food101",
    version="1.0.0",
    description="Food-101.",
    homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    images="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
    "#sha256=d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
    index=index,
    classes=101,
    totals={"train": 75_750, "test": 25_250},
)

DATASETS = standard(ARCHIVE)
