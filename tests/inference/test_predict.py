"""Predictions are those of the run's evaluation; what is no photo is told, and the others are predicted."""

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from afa_jax.data.images import five_crops
from afa_jax.inference import photos as reading
from afa_jax.inference.classifier import classifier
from afa_jax.inference.finished import reopen
from afa_jax.models import weights, zoo
from afa_jax.predict import main
from tests import tiny
from tests.analysis import by_hand


@pytest.fixture(scope="module")
def network(finished):
    return classifier(reopen(finished))


def said(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def by_numpy(finished, file):
    """The probabilities of a photo, from Pillow, NumPy and one plain pass of the network."""
    pixels = np.asarray(Image.open(file).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
    variables = weights.load(tiny.NETWORK, finished / "model")
    logits = by_hand.features(variables, pixels[None], (), tiny.NETWORK)[1][0]
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_are_those_of_the_network(finished, photos, network):
    files = [photos / "a.png", photos / "d.png", photos / "sub" / "f.png"]
    expected = np.stack([by_numpy(finished, file) for file in files])
    np.testing.assert_allclose(network(files), expected, atol=1e-5)
    np.testing.assert_allclose(network(iter(files), batch_size=2), expected, atol=1e-5)
    arrays = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_allclose(network(arrays), expected, atol=1e-5)
    np.testing.assert_allclose(network([Image.open(file) for file in files]), expected, atol=1e-5)
    assert network([]).shape == (0, 10) and network.classes == tuple("0123456789")


def test_the_bad_ones_are_told_and_the_others_predicted(finished, photos, capsys, tmp_path):
    output = tmp_path / "out" / "said.csv"
    status, out, err = said(
        capsys, finished, photos, tmp_path / "none.png", "-o", output, "--top", 3, "--batch_size", 2
    )
    assert status == 2 and out == ""
    assert err.splitlines() == [
        f"predict: {photos}/c.jpg: no image that can be read.",
        f"predict: {tmp_path}/none.png: there is no such file.",
        "predict: 2 of 7 photos could not be read; the others are predicted.",
    ]
    rows = list(csv.DictReader(output.read_text(encoding="utf-8").splitlines()))
    names = [Path(row["file"]).relative_to(tmp_path).as_posix() for row in rows]
    inside = ["a.png", "b.png", "c.jpg", "d.png", "sub/e.png", "sub/f.png"]
    assert names == [f"photos/{name}" for name in inside] + ["none.png"]
    assert [row["error"] for row in rows if row["error"]] == ["no image that can be read", "there is no such file"]
    for row in rows:
        if not row["error"]:
            expected = by_numpy(finished, row["file"])
            order = np.argsort(-expected)[:3]
            assert [row["class"], row["class_2"], row["class_3"]] == [str(i) for i in order]
            found = [float(row[key]) for key in ("probability", "probability_2", "probability_3")]
            np.testing.assert_allclose(found, expected[order], atol=1e-5)


def test_json_and_lines(finished, photos, capsys, tmp_path):
    status, out, err = said(capsys, finished, photos / "a.png", "--format", "json")
    (told,) = json.loads(out)
    assert (status, err) == (0, "") and told["top"][0] == {k: told[k] for k in ("class", "probability")}
    assert len(told["top"]) == 5 and told["file"] == str(photos / "a.png")
    name = tmp_path / "line\nend.png"
    shutil.copy(photos / "a.png", name)
    status, out, _ = said(capsys, finished, name, "--top", 1)
    percent = 100 * by_numpy(finished, name).max()
    assert status == 0 and out == f"{tmp_path}/line\\nend.png: {told['class']} {percent:.1f} %\n"


def test_one_photo_that_is_none(finished, photos, capsys):
    assert said(capsys, finished, photos / "c.jpg") == (
        2,
        "",
        f"predict: {photos}/c.jpg: no image that can be read.\n",
    )


@pytest.mark.parametrize(
    ("photo", "options", "sentence"),
    [
        ("empty", (), "The folder {}/empty has no photos."),
        ("photos", ("-o", "said.xml"), "said.xml is neither .csv nor .json"),
        ("photos", ("-o", "/dev/null/said.csv"), "cannot be written"),
    ],
)
def test_refused(finished, photos, capsys, tmp_path, photo, options, sentence):
    (tmp_path / "empty").mkdir()
    status, out, err = said(capsys, finished, tmp_path / photo, *options)
    assert status == 2 and out == "" and sentence.format(tmp_path) in err and err.count("\n") == 1


def no_classes(folder):
    variables = weights.load(tiny.NETWORK, folder / "model")
    weights.save(folder / "model", tiny.NETWORK, variables)


def fewer_classes(folder):
    variables = weights.load(tiny.NETWORK, folder / "model")
    weights.save(folder / "model", tiny.NETWORK, variables, classes=["a", "b"])


def cut(folder):
    file = folder / "model" / weights.FILE
    file.write_bytes(file.read_bytes()[:-9])


def unknown_network(folder):
    summary = json.loads((folder / "summary.json").read_text())
    summary["experiment"]["network"] = "my_vit"
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "There is no folder"),
        (lambda f: (f / "summary.json").unlink(), "the run there has not ended; its command goes on with it"),
        (lambda f: f.rename(f.parent / "x") and shutil.copytree(f.parent / "x", f / "afa" / "seed0"), "name one of"),
        (lambda f: shutil.rmtree(f / "model"), "The trained network"),
        (cut, "is no whole safetensors file"),
        (no_classes, "does not say the names of its classes"),
        (fewer_classes, "names 2 classes, and its network has 10 outputs"),
        (unknown_network, "of the network 'my_vit', which is not in the zoo"),
    ],
)
def test_a_workdir_without_a_finished_model(finished, photos, tmp_path, capsys, spoil, sentence):
    folder = shutil.copytree(finished, tmp_path / "copy")
    spoil(folder)
    status, out, err = said(capsys, folder, photos)
    assert status == 2 and out == "" and sentence in err and err.count("\n") == 1 and str(folder) in err


def test_nothing_but_the_model_is_needed(finished, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "bare").mkdir()
    shutil.copy(finished / "summary.json", tmp_path / "bare")
    shutil.copytree(finished / "model", tmp_path / "bare" / "model")
    monkeypatch.setattr("afa_jax.data.catalog.load", None)
    assert said(capsys, tmp_path / "bare", photos / "a.png")[0] == 0


def test_ten_crops_where_the_run_tested_them(network, photos):
    ten = replace(network, ten_crop=True, resize=10, preprocess=replace(network.preprocess, flip=True))
    pixels = ten.pixels(photos / "a.png")  # 12 × 9, so 13 × 10
    large = np.asarray(Image.open(photos / "a.png").resize((13, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels, five_crops(large, 8))
    crops = np.concatenate([pixels, pixels[:, :, ::-1]])
    seen = (crops / 255 - np.array(ten.preprocess.mean)) / np.array(ten.preprocess.std)
    logits = zoo.forward(network.module, network.variables, jax.numpy.asarray(seen, jax.numpy.float32)).logits
    np.testing.assert_allclose(ten.logits(pixels[None]), logits.mean(0)[None], atol=1e-5)


def test_arrays_that_are_no_pictures_are_refused(network):
    with pytest.raises(reading.UserError, match=r"A picture must be uint8 \[height, width, 3\], not float32 \[8, 8"):
        network([np.zeros((8, 8, 3), np.float32)])


def test_no_more_than_two_batches_are_read_ahead():
    read, lock = [], threading.Lock()

    def pixels(file):
        with lock:
            read.append(file)
        return np.zeros(1)

    batches = reading.read((Path(str(i)) for i in range(1000)), pixels, 10, threads=4)
    first = next(batches)
    assert [photo.file.name for photo in first] == [str(i) for i in range(10)] and len(read) <= 20
    assert sum(len(batch) for batch in batches) == 990 and len(read) == 1000


def test_the_attention_is_drawn_beside_the_photo(finished, photos, capsys, tmp_path):
    folder = tmp_path / "drawn"
    status, out, _ = said(
        capsys,
        finished,
        photos / "a.png",
        photos / "c.jpg",
        photos / "b.png",
        "--attention",
        folder,
        "--format",
        "json",
    )
    told = json.loads(out)
    files = ["000001-a.png", "000002-b.png"]
    assert status == 2 and [one.get("attention") for one in told] == [
        f"{folder}/{files[0]}",
        None,
        f"{folder}/{files[1]}",
    ]
    assert sorted(file.name for file in folder.iterdir()) == files
    with Image.open(folder / files[1]) as strip:
        drawn = np.asarray(strip)
    assert drawn.shape == (8, 3 * 8, 3)  # the photo, where AST looked, and where ACT's channels were active
    expected = Image.open(photos / "b.png").convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(drawn[:, :8], np.asarray(expected))
    assert (drawn[:, 8:16] != drawn[:, :8]).any() or (drawn[:, 16:] != drawn[:, :8]).any()
