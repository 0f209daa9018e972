"""The published data sets from miniature archives: counted, read, and refused when something is wrong."""

import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from afa_jax import download
from afa_jax.data import archive as module
from afa_jax.data import catalog
from afa_jax.data.builders import caltech256, cub200_2011, food101, mit_indoors67, stanford_dogs120
from afa_jax.data.dataset import Builder, Dataset, Request, Split, limited
from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError
from tests.data import archives

BUILDERS = {b.ARCHIVE.name: b for b in (caltech256, cub200_2011, food101, mit_indoors67, stanford_dogs120)}
OFFICIAL = {
    "mit_indoors67": {"train": 5_360, "test": 1_340},
    "stanford_dogs120": {"train": 12_000, "test": 8_580},
    "cub200_2011": {"train": 5_994, "test": 5_794},
    "food101": {"train": 75_750, "test": 25_250},
}
MINIATURE = {
    "caltech256": (3, {"images": 69}),
    "mit_indoors67": (2, {"train": 3, "test": 2}),
    "stanford_dogs120": (2, {"train": 2, "test": 3}),
    "cub200_2011": (2, {"train": 2, "test": 2}),
    "food101": (2, {"train": 3, "test": 2}),
}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that stands for all servers, and a cache of its own; TensorFlow is never imported."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(download.MIRROR, str(folder))
    yield folder
    assert "tensorflow" not in sys.modules


@pytest.fixture
def miniature(monkeypatch):
    """Makes a builder expect the miniature's counts and no digest."""

    def expect(name, **changes):
        classes, totals = MINIATURE[name]
        honest = BUILDERS[name].ARCHIVE
        bare = {key: url.partition("#")[0] for key, url in honest.lists.items()}
        small = replace(
            honest, images=honest.images.partition("#")[0], lists=bare, classes=classes, totals=totals, **changes
        )
        monkeypatch.setattr(BUILDERS[name], "ARCHIVE", small)
        if name != "caltech256":
            monkeypatch.setitem(catalog.CATALOG, name, module.standard(small)[name])
        return small

    return expect


@pytest.mark.parametrize("name", BUILDERS)
def test_a_miniature_is_prepared_counted_and_read(name, mirror, miniature):
    files = getattr(archives, name)(mirror)
    small = miniature(name)
    data = catalog.load(name, Request(size=16))
    if name == "caltech256":
        assert (len(data.train), len(data.test)) == (3 * 3, 3 * 20)
    else:
        assert {"train": len(data.train), "test": len(data.test)} == small.totals
    for split in (data.train, data.test):
        pixels = split.images[np.arange(len(split))]
        for i, file in enumerate(split.files):
            np.testing.assert_array_equal(pixels[i], resize(decode(files[file]), 16, "square"))
            # The label is that of the folder in which the file is.
            folder = file.split("/")[-2]
            assert data.classes[split.labels[i]] in (folder, folder.partition("-")[2])
        assert len(set(split.files)) == len(split)
    assert not set(data.train.files) & set(data.test.files)
    assert small.name in {path.name for path in (mirror.parent / "cache" / "tfds").iterdir()}


def test_what_is_there_is_neither_fetched_nor_decoded_again(mirror, miniature, monkeypatch):
    archives.food101(mirror)
    miniature("food101")
    first = catalog.load("food101", Request(size=8))
    (mirror / "food-101.tar.gz").unlink()
    monkeypatch.setattr("afa_jax.data.cache.decode", lambda data: pytest.fail("decoded again"))
    again = catalog.load("food101", Request(size=8))
    np.testing.assert_array_equal(first.train.images[np.arange(3)], again.train.images[np.arange(3)])
    assert first.key == again.key != ""
    monkeypatch.undo()


def test_another_size_is_decoded_from_the_same_records(mirror, miniature):
    archives.food101(mirror)
    miniature("food101")
    catalog.load("food101", Request(size=8))
    (mirror / "food-101.tar.gz").unlink()
    assert catalog.load("food101", Request(size=12)).train.images[np.arange(1)].shape == (1, 12, 12, 3)


def test_birds_have_their_parts_and_boxes(mirror, miniature):
    archives.cub200_2011(mirror)
    miniature("cub200_2011")
    data = catalog.load("cub200_2011", Request(size=8))
    order = {file.rsplit("/", 1)[1]: i for i, file in enumerate(data.train.files)}
    parts, boxes, sizes = (data.train.extras[name] for name in ("parts", "bounding_box", "original_size"))
    assert parts.shape == (2, 15, 3)
    # b.jpg is image 1, c.jpg image 3 in the lists.
    np.testing.assert_array_equal(parts[order["b.jpg"], 4], [15.5, 5, 1])
    np.testing.assert_array_equal(parts[order["c.jpg"], 1], [32.5, 2, 0])
    np.testing.assert_array_equal(boxes[order["c.jpg"]], [3, 2, 30.5, 3.5])
    np.testing.assert_array_equal(sizes[order["c.jpg"]], [42, 30])
    taken = data.train.take(np.array([order["c.jpg"]]))
    np.testing.assert_array_equal(taken.extras["bounding_box"], [[3, 2, 30.5, 3.5]])
    assert taken.files[0].endswith("c.jpg")


def full_lists(name, folder):
    """The official number of names in the official form of the lists, without images."""
    sizes = OFFICIAL[name]
    if name == "mit_indoors67":
        for file, split in (("TrainImages.txt", "train"), ("TestImages.txt", "test")):
            (folder / file).write_bytes(archives.lines(f"class{i % 67}/{split}{i}.jpg" for i in range(sizes[split])))
        return {"train": folder / "TrainImages.txt", "test": folder / "TestImages.txt"}
    if name == "stanford_dogs120":
        named = {
            split: [(f"n{i % 120:08d}-breed{i % 120}/{split}{i}.jpg", i % 120 + 1) for i in range(count)]
            for split, count in sizes.items()
        }
        archives.dogs_lists(folder, named)
        return {"lists": folder / "lists.tar"}
    if name == "cub200_2011":
        flags = [1] * sizes["train"] + [0] * sizes["test"]
        classes = [f"{i + 1:03d}.Bird" for i in range(200)]
        archives.tar(
            folder / "images.tgz",
            archives.cub_lists(flags, classes, [f"{classes[i % 200]}/{i}.jpg" for i in range(len(flags))]),
        )
        return {"images": folder / "images.tgz"}
    named = {
        split: {f"dish{c}": [f"dish{c}/{split}{i}" for i in range(count // 101)] for c in range(101)}
        for split, count in sizes.items()
    }
    archives.tar(folder / "images.tar.gz", archives.food_lists(named))
    return {"images": folder / "images.tar.gz"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_lists_of_the_official_size_are_accepted_and_of_another_refused(name, tmp_path):
    archive = BUILDERS[name].ARCHIVE
    assert archive.totals == OFFICIAL[name]
    index = archive.index(full_lists(name, tmp_path))
    assert len(index.classes) == archive.classes == int({"cub200_2011": "200"}.get(name, archive.name[-3:].strip("s")))
    assert module._checked(archive, index, tmp_path) is index
    assert Counter(entry.split for entry in index.entries.values()) == OFFICIAL[name]
    fewer = index._replace(entries=dict(list(index.entries.items())[1:]))
    with pytest.raises(
        UserError, match=r"has [0-9,]+ train images, and the lists .* name [0-9,]+: they are not the publ"
    ):
        module._checked(archive, fewer, tmp_path)


def test_caltech_256_n():
    """7,710 and 15,420 for training and 5,140 for testing, of 257 classes with 80 images or more."""
    labels = np.repeat(np.arange(257, dtype=np.int32), 80)
    files = [f"256_ObjectCategories/{c + 1:03d}.name/{c + 1:03d}_{i:04d}.jpg" for c in range(257) for i in range(80)]
    split = Split(np.arange(len(labels))[:, None], labels, files)
    whole = Dataset(tuple(map(str, range(257))), split, split)

    def load(per_class, seed=0):
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(module, "load", lambda *args, **kwargs: whole)
            return caltech256.load(Request(size=8, per_class=per_class, seed=seed))

    sets = {n: load(n) for n in (10, 20, 30, 40, 50, 60)}
    assert {n: len(data.train) for n, data in sets.items() if n in (30, 60)} == {30: 7_710, 60: 15_420}
    for n, data in sets.items():
        assert len(data.test) == 5_140
        assert set(np.bincount(data.train.labels)) == {n} and set(np.bincount(data.test.labels)) == {20}
        assert not set(data.train.files) & set(data.test.files)
        assert data.test.files == sets[10].test.files
        assert set(sets[max(10, n - 10)].train.files) <= set(data.train.files)
        rows = data.train.images[np.arange(len(data.train))][:, 0]
        assert [files[row] for row in rows] == data.train.files
    other = load(30, seed=1)
    assert len(set(other.train.files) & set(sets[30].train.files)) < 0.6 * 7_710
    assert set(other.test.files) != set(sets[30].test.files)
    assert len(load(0).train) == 257 * 60
    with pytest.raises(UserError, match="asks for 61 images a class, and 0 has 60 beside the 20 for testing"):
        load(61)


def test_caltechs_choice_is_the_same_in_every_release():
    names = [f"256_ObjectCategories/001.ak47/001_{i:04d}.jpg" for i in range(1, 31)]
    split = Split(np.zeros(30), np.zeros(30, np.int32), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda *args, **kwargs: Dataset(("ak47",), split, split))
        chosen = caltech256.load(Request(size=8, per_class=4, seed=3)).train.files
    assert [name[-8:-4] for name in chosen] == CHOSEN


CHOSEN = ["0008", "0017", "0024", "0029"]


def left(folder):
    """What lies in the cache, but locks and the archives."""
    places = [place for place in (folder / "tfds", folder / "images") if place.exists()]
    return [
        path.name for place in places for path in place.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    ]


def test_no_network_and_no_archive(mirror, miniature, monkeypatch):
    monkeypatch.delenv(download.MIRROR)
    miniature("mit_indoors67")
    archive = mit_indoors67.ARCHIVE
    gone = replace(archive, images="http://127.0.0.1:1/indoorCVPR_09.tar", lists={})
    with pytest.raises(UserError) as caught:
        module.prepared(gone)
    sentence = str(caught.value)
    assert "http://127.0.0.1:1/indoorCVPR_09.tar cannot be fetched" in sentence
    assert f"place it in {mirror.parent / 'cache' / 'archives' / 'mit_indoors67'} by hand" in sentence
    assert left(mirror.parent / "cache") == []


def test_an_archive_placed_by_hand_is_used_without_a_network(mirror, miniature, monkeypatch):
    monkeypatch.delenv(download.MIRROR)
    place = mirror.parent / "cache" / "archives" / "mit_indoors67"
    place.mkdir(parents=True)
    archives.mit_indoors67(place)
    miniature("mit_indoors67")
    assert len(catalog.load("mit_indoors67", Request(size=8)).train) == 3


def test_a_wrong_checksum(mirror):
    archives.food101(mirror)
    with pytest.raises(
        UserError, match=r"food-101.tar.gz is not the published file .* its sha256 begins .* not d97d15e4"
    ):
        catalog.load("food101", Request(size=8))
    assert left(mirror.parent / "cache") == []


def test_a_missing_class_image_or_list(mirror, miniature):
    files = archives.caltech256(mirror)
    miniature("caltech256")
    archives.tar(mirror / "256_ObjectCategories.tar", {n: c for n, c in files.items() if "257.clutter" not in n})
    with pytest.raises(UserError, match=r"has images of 2 classes, where caltech256 has 3: it is not the whole"):
        catalog.load("caltech256", Request(size=8))
    files = archives.cub200_2011(mirror)
    miniature("cub200_2011")
    for lost, match in (
        ("CUB_200_2011/images/002.Auk/d.jpg", r"lacks 1 of the images that its lists name, .*d.jpg among them"),
        (
            "CUB_200_2011/parts/part_locs.txt",
            r"has no CUB_200_2011/parts/part_locs.txt: it is not the published archive",
        ),
    ):
        archives.tar(mirror / "CUB_200_2011.tgz", {n: c for n, c in files.items() if n != lost})
        with pytest.raises(UserError, match=match):
            catalog.load("cub200_2011", Request(size=8))
    files["CUB_200_2011/train_test_split.txt"] = archives.lines(["1 1", "2 1", "3 0", "4 0"])
    files["CUB_200_2011/image_class_labels.txt"] = archives.lines(["1 1", "2 1", "3 1", "4 1"])
    archives.tar(mirror / "CUB_200_2011.tgz", files)
    with pytest.raises(UserError, match=r"has images of 1 classes, and none of 002.Auk, where cub200_2011 has 2"):
        catalog.load("cub200_2011", Request(size=8))
    assert left(mirror.parent / "cache") == []


@pytest.mark.parametrize("name", ["food101", "stanford_dogs120"])
def test_a_truncated_archive(name, mirror, miniature):
    getattr(archives, name)(mirror)
    miniature(name)
    path = next(file for file in mirror.iterdir() if file.name in ("food-101.tar.gz", "images.tar"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"is no whole tar archive|lacks [12] of the images"):
        catalog.load(name, Request(size=8))
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="is no whole tar archive"):
        catalog.load(name, Request(size=8))
    assert left(mirror.parent / "cache") == []


def test_an_image_of_the_archive_that_is_none_is_named(mirror, miniature):
    files = archives.food101(mirror)
    miniature("food101")
    archives.tar(mirror / "food-101.tar.gz", files | {"food-101/images/waffles/2.jpg": b"not found"})
    with pytest.raises(UserError, match=r"1 file is no image: food-101/images/waffles/2.jpg \(of no known format\)"):
        catalog.load("food101", Request(size=8))
    data = catalog.load("food101", Request(size=8, skip_damaged=True))
    assert (len(data.train), data.damaged) == (2, ("food-101/images/waffles/2.jpg (of no known format)",))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: next(folder.glob("*train*array_record*")).write_bytes(b""),
        lambda folder: next(folder.glob("*train*array_record*")).unlink(),
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        lambda folder: (folder / "label.labels.txt").unlink(),
    ],
)
def test_damaged_records_say_which_folder_to_remove(damage, mirror, miniature):
    archives.food101(mirror)
    miniature("food101")
    catalog.load("food101", Request(size=8))
    damage(mirror.parent / "cache" / "tfds" / "food101" / "1.0.0")
    with pytest.raises(UserError, match=r"The records in .*food101.* remove that folder") as caught:
        catalog.load("food101", Request(size=9))
    assert "\n" not in str(caught.value)


def test_what_a_kill_left_of_a_preparation_is_removed(mirror, miniature):
    half = mirror.parent / "cache" / "tfds" / "food101" / "incomplete.ABC_1.0.0"
    half.mkdir(parents=True)
    archives.food101(mirror)
    miniature("food101")
    catalog.load("food101", Request(size=8))
    assert not half.exists()


@pytest.mark.parametrize("content", [b"caf\xe9/1.jpg\n", "buffet/1.jpg".encode("utf-16")])
def test_a_list_in_other_bytes(content, mirror, miniature):
    archives.mit_indoors67(mirror)
    miniature("mit_indoors67")
    (mirror / "TrainImages.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"The lists of mit_indoors67 in .* are damaged: remove them"):
        catalog.load("mit_indoors67", Request(size=8))


def test_few_labels_of_any_archive(mirror, miniature):
    archives.food101(mirror)
    miniature("food101")
    assert np.bincount(catalog.load("food101", Request(size=8, per_class=1)).train.labels).tolist() == [1, 1]
    with pytest.raises(UserError, match="set it to at most 1"):
        catalog.load("food101", Request(size=8, per_class=2))


def test_a_class_without_an_image_to_train_on():
    empty = Dataset(("a", "b"), Split(np.zeros(1), np.zeros(1, np.int32)), Split(np.zeros(0), np.zeros(0, np.int32)))
    with pytest.raises(UserError, match="The class b has no image to train on"):
        limited(empty, Request(size=8))


def test_every_archive_is_in_the_catalogue():
    assert all(isinstance(catalog.CATALOG[name], Builder) for name in BUILDERS)
    for builder in BUILDERS.values():
        digest = builder.ARCHIVE.images.partition("#sha256=")[2]
        assert len(digest) == 64 or builder.ARCHIVE.name == "mit_indoors67"  # its publisher gives none
