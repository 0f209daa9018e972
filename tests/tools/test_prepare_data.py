"""The data tool as it is typed: what it prints, the picture, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.archives import picture

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from prepare_data import main


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    for number, (name, count) in enumerate({"cat_of_house": 12, "dog": 3}.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(picture(100 * number + i))
    return tmp_path / "photos"


def test_counts_classes_and_a_picture(photos, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["image_folder", "--dir", str(photos), "--resize", "32", "--crop", "24", "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["class", "training", "test"],
        ["cat_of_house", "10", "2"],
        ["dog", "2", "1"],
    ]
    assert lines[3] == "2 classes, 12 training images, 3 test images"
    assert "An image takes 3 kB" in lines[4] and "holds 0.00 GB" in lines[4] and str(sheet) in lines[4]
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    # Ten tiles of the first class, two of the second and then nothing but white.
    rows = [pixels[4:100, 224:], pixels[104:200, 224:]]
    tiles = [[bool((row[:, 100 * i : 100 * i + 96] < 250).any()) for i in range(10)] for row in rows]
    assert tiles == [[True] * 10, [True] * 2 + [False] * 8]
    assert (pixels[:, :220] < 100).any()  # the names


def test_those_held_out_are_told_apart(photos, capsys):
    for number, (half, name) in enumerate([("train", "ann"), ("train", "bob"), ("test", "eve"), ("test", "dan")]):
        (photos / half / name).mkdir(parents=True)
        for i in range(2 + number):
            (photos / half / name / f"{i}.jpg").write_bytes(picture(10 * number + i))
    sheet = photos / "sheet.png"
    assert main(["identities", "--dir", str(photos), "--sheet", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["ann", "2", "0"],
        ["bob", "3", "0"],
        ["dan", "0", "5"],
        ["eve", "0", "4"],
    ]
    assert lines[5] == "2 classes and 2 held out, 5 training images, 9 test images"
    assert lines[6] == "16 genuine and 20 impostor pairs are verified; the smallest false accept rate is 0.05"


def test_a_damaged_picture_and_a_wrong_name(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "dog" / "broken.jpg").write_bytes(b"no")
    command = ["image_folder", "--dir", str(photos), "--resize", "32", "--crop", "24"]
    assert main(command) == 2
    assert "prepare_data: 1 file is no image: dog/broken.jpg" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
    assert main([*command, "--skip-damaged"]) == 0
    assert "1 left out, no images: dog/broken.jpg" in capsys.readouterr().out
    assert (tmp_path / "image_folder.png").is_file()
    assert main(["image_folders"]) == 2
    assert "no data set 'image_folders'; did you mean image_folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--test-fraction", "nan"], "config.data.test_fraction is nan"),
        (["--seed", "-1"], "config.seed is -1"),
        (["--per-class", "-1"], "config.data.per_class is -1"),
        (["--crop", "64"], "data.image_size is 64, larger than data.resize, 32"),
        (["--augmentation", "best"], "config.data.augmentation is 'best'"),
        (["--sheet", "/nowhere/x.png"], "There is no folder /nowhere for the picture"),
    ],
)
def test_wrong_options_are_told_before_anything_is_decoded(photos, options, match, capsys, monkeypatch):
    monkeypatch.setattr("afa_jax.data.cache.decode", lambda data: pytest.fail("decoded"))
    assert main(["image_folder", "--dir", str(photos), "--resize", "32", "--crop", "24", *options]) == 2
    said = capsys.readouterr().err
    assert match in said and said.count("\n") == 1
