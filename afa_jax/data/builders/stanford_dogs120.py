"""Stanford Dogs 120: 12,000 and 8,580 photos of 120 breeds, taken from ImageNet (Khosla et al., 2011).

A network trained on ImageNet has seen these photos.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afa_jax.data.archive import Archive, Entry, Index, read_members, standard


def index(paths: Mapping[str, Path]) -> Index:
    """The lists are MATLAB files: `file_list` has `breed/file.jpg`, `labels` counts from 1."""
    from scipy.io import loadmat

    lists = read_members(paths["lists"], ("train_list.mat", "test_list.mat"))
    entries, classes = {}, {}
    for split in ("train", "test"):
        table: dict[str, Any] = loadmat(io.BytesIO(lists[f"{split}_list.mat"]))
        for row, label in zip(table["file_list"], table["labels"].ravel(), strict=True):
            name = str(row[0].item())
            entries[f"Images/{name}"] = Entry(split, int(label) - 1)
            classes[int(label) - 1] = name.split("/")[0].partition("-")[2]
    return Index(tuple(classes[label] for label in sorted(classes)), entries)


ARCHIVE = Archive(
    name="stanford_dogs120",
    version="1.0.0",
    description="Stanford Dogs, 120 breeds.",
    homepage="http://vision.stanford.edu/aditya86/ImageNetDogs/",
    images="http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar"
    "#sha256=a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    lists={
        "lists": "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar"
        "#sha256=34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"
    },
    index=index,
    classes=120,
    totals={"train": 12_000, "test": 8_580},
)

DATASETS = standard(ARCHIVE)
