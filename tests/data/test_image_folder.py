"""A person's own pictures: both layouts, few labels, and everything that can be wrong with a folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afa_jax import experiment
from afa_jax.data import catalog
from afa_jax.data.dataset import Request
from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError
from afa_jax.main import main
from tests.data.archives import picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))


def fill(root, tree):
    """`tree`: how many pictures in each folder; their numbers go on from folder to folder."""
    number = 0
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i} picture.jpg").write_bytes(picture(number))
            number += 1
    return root


@pytest.fixture
def halves(tmp_path):
    return fill(tmp_path / "photos", {"train/cat": 4, "train/dog": 5, "test/cat": 2, "test/dog": 1})


def load(root, **wanted):
    return catalog.load("image_folder", Request(size=16, crop=12, folder=str(root), **wanted))


def refuse(root, match, **wanted):
    with pytest.raises(UserError, match=match) as caught:
        load(root, **wanted)
    assert "\n" not in str(caught.value)


def test_train_and_test_folders(halves):
    (halves / "validation" / "cat").mkdir(parents=True)  # is left alone
    data = load(halves)
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.train.labels).tolist() == [4, 5] and np.bincount(data.test.labels).tolist() == [2, 1]
    for split in (data.train, data.test):
        for i, file in enumerate(split.files):
            expected = resize(decode((halves / file).read_bytes()), 16, "square")
            np.testing.assert_array_equal(split.images[i], expected)
            assert f"/{data.classes[split.labels[i]]}/" in file


def test_one_folder_and_a_share(tmp_path):
    root = fill(tmp_path / "photos", {"cat": 10, "dog": 20, "emu": 2})
    data = load(root, test_fraction=0.3)
    assert np.bincount(data.test.labels).tolist() == [3, 6, 1]
    assert np.bincount(data.train.labels).tolist() == [7, 14, 1]
    assert not set(data.train.files) & set(data.test.files)
    assert data.test.files == load(root, test_fraction=0.3, seed=9).test.files
    # A picture that comes later puts none of the others on the other side but at the edge.
    (root / "dog" / "new.jpg").write_bytes(picture(999))
    later = load(root, test_fraction=0.3)
    assert len(set(later.test.files) ^ set(data.test.files)) <= 2
    assert later.key != data.key
    assert len(load(root, test_fraction=0.0).test) == 3 and len(load(root, test_fraction=1.0).train) == 3


def test_few_labels_are_nested_and_chosen_by_the_seed(halves):
    one, three, other = (load(halves, per_class=k, seed=s).train for k, s in ((1, 0), (3, 0), (3, 1)))
    assert np.bincount(three.labels).tolist() == [3, 3]
    assert set(one.files) < set(three.files) != set(other.files)
    refuse(halves, "asks for 5 labelled images a class, but class cat has 4: set it to at most 4", per_class=5)


def test_pictures_may_lie_deeper_and_hidden_files_are_none(halves):
    deep = halves / "train" / "cat" / "2019" / "summer"
    deep.mkdir(parents=True)
    (deep / "x.PNG").write_bytes(picture(77, "PNG"))
    for hidden in (".DS_Store", "Thumbs.db", "._0 picture.jpg"):
        (halves / "train" / "cat" / hidden).write_bytes(b"no picture")
    (halves / "train" / ".git").mkdir()
    assert np.bincount(load(halves).train.labels).tolist() == [5, 5]


def test_a_class_may_be_missing_from_the_test_images(tmp_path):
    data = load(fill(tmp_path / "photos", {"train/a": 1, "train/b": 1, "train/c": 1, "test/a": 1, "test/c": 1}))
    assert data.test.labels.tolist() == [0, 2]


def test_names_in_any_language(tmp_path):
    root = fill(tmp_path / "photos", {"train/čert": 1, "train/犬": 1, "test/čert": 1, "test/犬": 1})
    (root / "train" / "犬" / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(picture(5))
    assert len(load(root).train) == 3


def test_a_changed_picture_is_decoded_anew(halves):
    before = load(halves)
    file = halves / before.train.files[0]
    file.write_bytes(picture(123))
    after = load(halves)
    assert after.key != before.key
    assert (after.train.images[0] != before.train.images[0]).any()


def test_the_improved_treatment(tmp_path):
    root = fill(tmp_path / "photos", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    data = load(root, augmentation="improved")
    assert data.train.images[np.arange(4)].shape == (4, 16, 16, 3)
    crops = data.test.images[np.arange(2)]
    assert crops.shape == (2, 5, 12, 12, 3)
    whole = resize(decode((root / data.test.files[1]).read_bytes()), 16, "whole")
    assert whole.shape == (16, 21, 3)
    np.testing.assert_array_equal(crops[1, 0], whole[:12, :12])
    np.testing.assert_array_equal(crops[1, 3], whole[-12:, -12:])


def test_what_is_wrong_with_a_folder(tmp_path, halves):
    refuse("", r"needs to know where the pictures are: give --config.data.dir=FOLDER")
    refuse(tmp_path / "nowhere", r"There is no folder .*nowhere, which data.dir names")
    refuse(halves / "train" / "cat", r"must have one folder of pictures for each class, and has 0")
    refuse(fill(tmp_path / "none", {"train/a": 1, "train/b": 1, "test": 0}), r"test must have one folder of pictures")
    refuse(fill(tmp_path / "one", {"cat": 3}), r"must have one folder of pictures for each class, and has 1")
    refuse(
        fill(tmp_path / "half", {"train/cat": 3, "train/dog": 1}),
        r"has a folder train with folders in it, and not both",
    )
    refuse(fill(tmp_path / "empty", {"cat": 3, "dog": 0}), r"The class .*dog has no pictures: put some there")
    refuse(fill(tmp_path / "single", {"cat": 3, "dog": 1}), r"The class dog has one picture only")
    unknown = fill(tmp_path / "unknown", {"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1})
    refuse(unknown, r"test has a class 'c', of which .*train has no pictures")


def test_train_and_test_in_capitals_and_a_class_called_train(tmp_path):
    data = load(fill(tmp_path / "capitals", {"Train/cat": 2, "Train/dog": 2, "TEST/cat": 1}))
    assert data.classes == ("cat", "dog") and data.test.labels.tolist() == [0]
    assert load(fill(tmp_path / "traffic", {"train": 2, "bus": 2})).classes == ("bus", "train")


def test_hidden_folders_hold_no_pictures_and_links_are_followed_once(tmp_path):
    root = fill(
        tmp_path / "photos", {"cat": 3, "dog": 3, "cat/.thumbnails": 3, "dog/@eaDir": 2, "@eaDir": 1, "__MACOSX": 0}
    )
    elsewhere = fill(tmp_path / "elsewhere", {"more": 2})
    (root / "cat" / "linked").symlink_to(elsewhere / "more")
    (root / "cat" / "again").symlink_to(root / "cat")
    data = load(root)
    assert data.classes == ("cat", "dog")
    counts = np.bincount(data.train.labels) + np.bincount(data.test.labels)
    assert counts.tolist() == [5, 3]


def test_what_is_no_file_is_named(tmp_path):
    root = fill(tmp_path / "photos", {"cat": 3, "dog": 3})
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "loop.jpg").symlink_to(root / "cat" / "loop.jpg")
    os.mkfifo(root / "dog" / "pipe.jpg")
    with pytest.raises(UserError, match="3 files are no images") as caught:
        load(root)
    for file in ("cat/gone.jpg (no such file)", "cat/loop.jpg", "dog/pipe.jpg (no ordinary file)"):
        assert file in str(caught.value)
    assert len(load(root, skip_damaged=True).damaged) == 3


def test_a_disk_that_fails_is_not_the_pictures_fault(halves, monkeypatch):
    honest = Path.read_bytes

    def fail(path):
        if path.name == "1 picture.jpg":
            raise OSError(5, "Input/output error")
        return honest(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        refuse(halves, r"1 picture.jpg cannot be read \(Input/output error\)", skip_damaged=True)
    assert len(load(halves).train) == 9


def test_two_folders_of_one_name_are_not_taken_for_each_other(tmp_path):
    """The same names, sizes and times, as an unpacked archive may have."""
    means = []
    for i, place in enumerate(("one", "two")):
        root = tmp_path / place / "photos"
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (20, 20), (200 * i,) * 3).save(root / name / f"{k}.bmp")
                os.utime(root / name / f"{k}.bmp", (0, 0))
        means.append(load(root).train.images[np.arange(2)].mean())
    assert means == [0, 200]


def test_other_times_of_the_same_pictures_are_the_same_data(halves):
    before = load(halves).key
    for file in halves.rglob("*.jpg"):
        os.utime(file, (1, 1))
    assert load(halves).key == before
    (halves / "test" / "cat" / "0 picture.jpg").write_bytes(picture(55))
    assert load(halves).key != before


def test_no_picture_left_to_test(tmp_path):
    root = fill(tmp_path / "photos", {"train/a": 1, "train/b": 1, "test/a": 0})
    (root / "test" / "a" / "x.jpg").write_bytes(b"no")
    refuse(root, r"photos-test has no images", skip_damaged=True)


def test_a_line_of_pixels(tmp_path):
    root = fill(tmp_path / "photos", {"train/a": 2, "train/b": 2, "test/a": 2})
    Image.new("RGB", (3000, 1)).save(root / "test" / "a" / "line.png")
    assert len(load(root).test) == 3
    refuse(root, r"line.png \(3000 × 1 pixels are too thin to keep their aspect ratio\)", augmentation="improved")


def command(root, workdir, **settings):
    more = {
        "network": "resnet10_small",
        "source.weights": "train",
        "recipe": "scratch",
        "steps": 2,
        "batch_size": 4,
        "data.image_size": 12,
        "data.resize": 16,
        **settings,
    }
    flags = [f"--config.{key}={value}" for key, value in more.items()]
    config = ["--config", "configs/image_folder.py", f"--config.data.dir={root}"]
    return main(["afa_jax", *config, f"--workdir={workdir}", *flags])


def test_a_run_on_ones_own_pictures(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    (halves / "train" / "dog" / "notes.txt").write_text("no picture")
    assert command(halves, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "1 file is no image: train/dog/notes.txt (of no known format)" in said
    assert "--config.data.skip_damaged=True" in said
    assert not (tmp_path / "run" / "config.json").exists()

    skip = {"data.skip_damaged": True}
    assert command(halves, tmp_path / "run", **skip) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["damaged"] == ["train/dog/notes.txt (of no known format)"]
    assert (summary["train_images"], summary["test_images"]) == (9, 3)
    assert 0 <= summary["waiting_for_data_share"] <= 1

    improved = {"data.augmentation": "improved", **skip}
    assert command(halves, tmp_path / "improved", **improved) == 0
    assert command(halves, tmp_path / "improved", **skip) == 2
    assert "another run (data.augmentation is 'improved' there and 'default' here)" in capsys.readouterr().err


def test_a_source_network_belongs_to_its_pictures(halves, tmp_path, monkeypatch):
    """Other pictures in the same folder make another source network; damaged ones are left out there too."""
    monkeypatch.chdir(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    root = fill(tmp_path / "source", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    (root / "train" / "a" / "notes.txt").write_text("no picture")
    settings = {"recipe": "l2", "source.dataset": "image_folder", "source.dir": root, "source.steps": 2}
    settings |= {"data.skip_damaged": True, "convention": "released", "source.batch_size": 2}
    origins = []
    for i in range(2):
        assert command(halves, tmp_path / f"run{i}", **settings) == 0
        origins.append(json.loads((tmp_path / f"run{i}" / "origin.json").read_text()))
        (root / "train" / "a" / "0 picture.jpg").write_bytes(picture(777))
        experiment._load.cache_clear()
    assert origins[0]["images"] == origins[1]["images"]
    assert origins[0]["source network"] != origins[1]["source network"]


def test_a_run_does_not_go_on_with_other_pictures(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    assert command(halves, tmp_path / "run") == 0
    (tmp_path / "run" / "summary.json").unlink()
    (halves / "train" / "dog" / "0 picture.jpg").write_bytes(picture(321))
    experiment._load.cache_clear()  # as another process would
    assert command(halves, tmp_path / "run") == 2
    assert "The images are not what the run in" in capsys.readouterr().err
