"""Caltech-256: 30,607 photos of 257 classes, clutter among them (Griffin, Holub and Perona, 2007).

It has no split of its own. A run's seed chooses 20 images a class for testing and then `data.per_class` others for
training (Caltech-256-30, -60), by a hash of each file's name: with one seed, thirty a class are among the sixty, and
the test images are the same.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from afa_jax.data import archive
from afa_jax.data.archive import Archive, Entry, Index, members
from afa_jax.data.dataset import Builder, Dataset, Request
from afa_jax.errors import UserError

TEST_PER_CLASS = 20
# One folder also holds a stray file and a stray folder; only images under their own number are the data set's.
_MEMBER = re.compile(r"256_ObjectCategories/((\d{3})\.[^/]+)/\2_\d{4}\.jpg")


def index(paths: Mapping[str, Path]) -> Index:
    """Every image, in the one split `images`; a label is the folder's place in the order of their numbers."""
    found = [match for name, _ in members(paths["images"]) if (match := _MEMBER.fullmatch(name))]
    classes = sorted({match[1] for match in found})
    labels = {name: label for label, name in enumerate(classes)}
    return Index(tuple(classes), {match[0]: Entry("images", labels[match[1]]) for match in found})


ARCHIVE = Archive(
    name="caltech256",
    version="1.0.0",
    description="Caltech-256 object categories and one of clutter.",
    homepage="https://data.caltech.edu/records/nyy15-4j048",
    images="https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar"
    "#sha256=08ff01b03c65566014ae88eb0490dbe4419fc7ac4de726ee1163e39fd809543e",
    index=index,
    classes=257,
    totals={"images": 30_607},
)


def load(request: Request) -> Dataset:
    """20 images a class for testing, and of the others `per_class` for training, or all.

    Raises:
      UserError: a class has fewer.
    """
    data = archive.load(ARCHIVE, request, train="images", test="images")
    train: list[int] = []
    test: list[int] = []
    for label, name in enumerate(data.classes):
        found = np.flatnonzero(data.train.labels == label).tolist()
        order = sorted(found, key=lambda i: sha256(f"{request.seed}/{data.train.files[i]}".encode()).digest())
        rest = order[TEST_PER_CLASS:]
        if len(rest) < max(1, request.per_class):
            raise UserError(
                f"data.per_class asks for {request.per_class} images a class, and {name} has {len(rest)} beside the "
                f"{TEST_PER_CLASS} for testing: set it lower."
            )
        train += rest[: request.per_class or None]
        test += order[:TEST_PER_CLASS]
    return replace(data, train=data.train.take(np.sort(train)), test=data.test.take(np.sort(test)))


DATASETS = {"caltech256": Builder(load, seeded=True)}
