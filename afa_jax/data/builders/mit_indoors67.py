"""MIT Indoors 67: 5,360 and 1,340 photos of 67 kinds of rooms (Quattoni and Torralba, 2009).

The archive holds 15,620; the two lists beside it name those of the benchmark, about 80 and 20 a class.
"""

from collections.abc import Mapping
from pathlib import Path

from afa_jax.data.archive import Archive, Entry, Index, standard


def index(paths: Mapping[str, Path]) -> Index:
    """The lists' lines are `class/file`, some with spaces in them."""
    lists = {split: paths[split].read_text(encoding="utf-8").splitlines() for split in ("train", "test")}
    named = [(split, line.strip()) for split, lines in lists.items() for line in lines if line.strip()]
    classes = sorted({line.split("/")[0] for _, line in named})
    labels = {name: label for label, name in enumerate(classes)}
    entries = {f"Images/{line}": Entry(split, labels[line.split("/")[0]]) for split, line in named}
    return Index(tuple(classes), entries)


ARCHIVE = Archive(
    name="mit_indoors67",
    version="1.0.0",
    description="MIT Indoor scenes, 67 categories.",
    homepage="http://web.mit.edu/torralba/www/indoor.html",
    images="http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",
    lists={
        "train": "http://web.mit.edu/torralba/www/TrainImages.txt",
        "test": "http://web.mit.edu/torralba/www/TestImages.txt",
    },
    index=index,
    classes=67,
    totals={"train": 5_360, "test": 1_340},
)

DATASETS = standard(ARCHIVE)
