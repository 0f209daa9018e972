"""Identities: who is held out, what their labels are, alignment by a table, and everything that can be wrong."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from afa_jax.data import catalog
from afa_jax.data.alignment import TEMPLATE, align
from afa_jax.data.builders.identities import hold_out
from afa_jax.data.contact_sheet import contact_sheet
from afa_jax.data.dataset import Request
from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError
from tests.data.archives import picture
from tests.data.test_image_folder import fill


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def people(tmp_path):
    """Seven identities with 2 to 4 images."""
    return fill(tmp_path / "people", {f"p{i}": 2 + i % 3 for i in range(7)})


def load(root, name="identities", **wanted):
    return catalog.load(name, Request(**{"size": 16, "crop": 16, "folder": str(root), "held_out": 3, **wanted}))


def refuse(root, match, **wanted):
    with pytest.raises(UserError, match=match) as caught:
        load(root, **wanted)
    assert "\n" not in str(caught.value)


def of(data):
    """(identities trained on, identities verified) as the files say, each with the label it has."""
    return [
        {(file.split("/")[-2], int(s.labels[i])) for i, file in enumerate(s.files)} for s in (data.train, data.test)
    ]


def test_identities_are_held_out_with_labels_of_their_own(people):
    data = load(people)
    assert len(data.classes) == 4 and len(data.held_out) == 3 and data.test_classes == data.held_out
    assert set(data.classes) | set(data.held_out) == {f"p{i}" for i in range(7)}
    names = [{(name, i) for i, name in enumerate(classes)} for classes in (data.classes, data.held_out)]
    assert of(data) == names and list(data.held_out) == sorted(data.held_out)
    assert len(data.train) + len(data.test) == len(list(people.rglob("*.jpg")))
    for split in (data.train, data.test):
        for i, file in enumerate(split.files):
            np.testing.assert_array_equal(split.images[i], resize(decode((people / file).read_bytes()), 16, "square"))


def test_the_seed_chooses_and_fewer_are_among_more(people):
    chosen = {seed: load(people, seed=seed).held_out for seed in range(6)}
    assert chosen[0] == load(people, seed=0).held_out and len(set(chosen.values())) > 2
    assert set(load(people, held_out=2).held_out) < set(chosen[0]) < set(load(people, held_out=5).held_out)
    names = [f"{i:03d}" for i in range(335)]
    held = hold_out(names, 80, seed=1)
    assert len(held) == 80 and held == sorted(held)
    # Another identity puts at most one on the other side.
    assert len(set(hold_out([*names, "new"], 80, seed=1)) - set(held)) <= 1
    often = np.bincount([int(name) for seed in range(200) for name in hold_out(names, 80, seed)], minlength=335)
    assert often.mean() == pytest.approx(200 * 80 / 335) and often.min() > 20 and often.max() < 80


def test_train_and_test_folders_say_it_themselves(tmp_path):
    root = fill(tmp_path / "people", {"train/a": 1, "train/b": 2, "Test/c": 2, "Test/d": 3})
    data = load(root, held_out=80)
    assert (data.classes, data.held_out) == (("a", "b"), ("c", "d"))
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [0, 0, 1, 1, 1]
    fill(root, {"train/d": 1})
    refuse(root, r"The identity d is in .*train and in .*Test: who is verified must not be trained on")
    fill(root, {"train/c": 1})
    refuse(root, r"The identity c and 1 more is in")


def test_greyscale_and_alpha_become_three_channels(people):
    for name, mode in (("grey", "L"), ("transparent", "RGBA"), ("palette", "P")):
        for folder in people.iterdir():
            Image.open(io.BytesIO(picture(5))).convert(mode).save(folder / f"{name}.png")
    data = load(people)
    grey = [i for i, file in enumerate(data.train.files) if file.endswith("grey.png")]
    pixels = data.train.images[np.array(grey)]
    assert pixels.shape == (4, 16, 16, 3) and (pixels == pixels[..., :1]).all()


def test_few_images_an_identity(people):
    one = load(people, per_class=1)
    assert one.train.labels.tolist() == [0, 1, 2, 3] and len(one.test) == len(load(people).test)
    refuse(people, "asks for 9 labelled images a class", per_class=9)


def test_what_is_wrong_with_identities(tmp_path, people):
    refuse("", "The data set identities needs to know where they are: give --config.data.dir=FOLDER")
    refuse(tmp_path / "nowhere", r"There is no folder .*nowhere, which data.dir names")
    for count in (-1, 0, 1, 6, 80):
        refuse(
            people,
            rf"data.held_out is {count}, of 7 identities in .*; set it to 2 at least and 5 at most",
            held_out=count,
        )
    refuse(fill(tmp_path / "three", {"a": 2, "b": 2, "c": 2}), "one folder of pictures for each identity, and has 3")
    refuse(fill(tmp_path / "empty", {"a": 2, "b": 2, "c": 2, "d": 0}), r"The identity .*d has no pictures")
    refuse(fill(tmp_path / "half", {"train/a": 2, "b": 2}), r"not both train and test: .* held out \(data.held_out\)")
    refuse(people, "set data.augmentation to 'default'", augmentation="improved")


def test_an_identity_with_one_image_cannot_be_verified(tmp_path, people):
    root = fill(tmp_path / "one", {"train/a": 1, "train/b": 1, "test/c": 2, "test/d": 1})
    refuse(root, "The identity d is held out to be verified and has one image only, which makes no genuine pair: add")
    fill(root, {"test/e": 1})
    refuse(root, "no genuine pair, and so do 1 more")
    # Trained on it may be, and an image that is damaged is no image.
    held = load(people).held_out
    for file in sorted((people / held[1]).iterdir())[1:]:
        file.write_bytes(b"no")
    refuse(people, "files? (is|are) no images?")
    refuse(people, f"The identity {held[1]} is held out to be verified and has one image only", skip_damaged=True)
    next(iter(sorted((people / held[1]).iterdir()))).write_bytes(b"no")
    refuse(people, f"The identity {held[1]} is held out to be verified and has no image", skip_damaged=True)


def landmarks(root, seed=0):
    """A table for all pictures, and what it says."""
    random = np.random.default_rng(seed)
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.jpg"))
    points = {name: TEMPLATE / 4 + random.normal(size=(5, 2)) for name in names}
    rows = [f"{name},{','.join(map(repr, values.ravel().tolist()))}" for name, values in points.items()]
    (root / "landmarks.csv").write_text("file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n" + "\n".join(rows))
    return points


def test_pictures_are_aligned_where_there_is_a_table(people):
    resized = load(people)
    points = landmarks(people)
    aligned = load(people)
    assert aligned.key != resized.key and aligned.held_out == resized.held_out
    for split in (aligned.train, aligned.test):
        for i, file in enumerate(split.files):
            expected = align(decode((people / file).read_bytes()), points[file], 16)
            np.testing.assert_array_equal(split.images[i], expected)
    landmarks(people, seed=1)
    moved = load(people)
    assert moved.key not in (aligned.key, resized.key)
    os.remove(people / "landmarks.csv")
    assert load(people).key == resized.key


def test_a_table_without_a_picture(people):
    landmarks(people)
    (people / "p0" / "new.jpg").write_bytes(picture(7))
    refuse(people, r"landmarks.csv has no line for p0/new.jpg: add it, or remove the table, and all pictures are resi")
    (people / "p1" / os.fsdecode(b"\xff.jpg")).write_bytes(picture(7))
    refuse(people, r"landmarks.csv has no line for .* and 1 more: add them")
    (people / "landmarks.csv").write_text("")
    refuse(people, r"has no line for .* and \d+ more")


def test_polyu_nirfd_is_placed_by_hand(cache, people, tmp_path):
    refuse("", r"PolyU-NIRFD cannot be fetched: .* in .*cache/archives/polyu_nirfd, or name", name="polyu_nirfd")
    refuse(tmp_path / "nowhere", r"There is no folder .*nowhere", name="polyu_nirfd")
    (cache / "archives").mkdir(parents=True)
    people.rename(cache / "archives" / "polyu_nirfd")
    assert len(load("", "polyu_nirfd").held_out) == 3
    assert Request(size=8).held_out == 80
    elsewhere = fill(tmp_path / "elsewhere", {name: 2 for name in "abcde"})
    assert len(load(elsewhere, "polyu_nirfd").classes) == 2


def test_folds_are_of_identities(tmp_path):
    root = fill(tmp_path / "people", {f"p{i}": 2 for i in range(10)})
    whole = load(root)
    folds = [load(root, fold=(k, 3)) for k in (1, 2, 3)]
    tested = [set(fold.held_out) for fold in folds]
    assert set.union(*tested) == set(whole.classes) and [len(names) for names in tested] == [3, 2, 2]
    for fold in folds:
        assert set(fold.classes) == set(whole.classes) - set(fold.held_out)
        assert of(fold) == [{(n, i) for i, n in enumerate(names)} for names in (fold.classes, fold.held_out)]
        assert {file.split("/")[-2] for file in fold.test.files}.isdisjoint(whole.held_out)
        for i, file in enumerate(fold.test.files):
            expected = resize(decode((root / file).read_bytes()), 16, "square")
            np.testing.assert_array_equal(fold.test.images[i], expected)
    refuse(root, "Cross-validation in 4 parts needs two identities or more in each, and 7 are trained on", fold=(4, 4))


def test_those_held_out_are_on_the_sheet(people):
    data = load(people)
    pixels = np.asarray(contact_sheet(data))
    assert pixels.shape[0] == 7 * 100 + 4
    for row, (split, label) in enumerate([(data.train, i) for i in range(4)] + [(data.test, i) for i in range(3)]):
        first = split.images[int(np.flatnonzero(split.labels == label)[0])]
        tile = np.asarray(Image.fromarray(first).resize((96, 96), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(pixels[100 * row + 4 : 100 * row + 100, 224:320], tile)
