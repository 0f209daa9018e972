"""Exported files give the logits that the network gives: in torchvision, and where afa_jax cannot be imported."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from afa_jax.data.augment import Preprocess
from afa_jax.export import main
from afa_jax.inference.card import card
from afa_jax.inference.classifier import Classifier, classifier
from afa_jax.inference.files import write_program, write_weights
from afa_jax.inference.finished import reopen
from afa_jax.models import zoo
from tests import tiny

ALONE = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("afa_jax", "flax"):
            raise ImportError(name + " cannot be imported here")

sys.meta_path.insert(0, Nowhere())
"""


def told(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The folder of a run's files, the run beside it."""
    folder = tmp_path_factory.mktemp("export") / "digits"
    assert main([str(finished), "-o", str(folder)]) == 0
    return folder


def alone(code, folder, *arguments):
    """Runs code in a process that has neither afa_jax nor flax; gives what it prints."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", ALONE + code, *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_program_gives_the_logits_in_a_process_without_this_package(finished, exported, tmp_path):
    network = classifier(reopen(finished))
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = """
import jax.export, numpy as np
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load("images.npy")
for number in (1, 5):  # any number of images
    said = network.call(images[:number])
    np.savez(f"said{number}.npz", **{name: np.asarray(value) for name, value in said.items()})
try:
    import afa_jax
except ImportError as error:
    print(error)
"""
    assert alone(code, tmp_path, exported / "model.stablehlo") == "afa_jax cannot be imported here\n"
    expected = network.logits(images)
    for number in (1, 5):
        with np.load(tmp_path / f"said{number}.npz") as said:
            np.testing.assert_allclose(said["logits"], expected[:number], atol=1e-5)
            np.testing.assert_allclose(said["probabilities"], network(images[:number]), atol=1e-5)


def test_what_the_card_shows_runs(finished, exported, photos, tmp_path):
    text = (exported / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)  # torchvision has no such network
    for name in ("model.stablehlo", "classes.json"):
        shutil.copy(exported / name, tmp_path)
    shutil.copy(photos / "a.png", tmp_path / "photo.jpg")
    said = alone(code, tmp_path)
    network = classifier(reopen(finished))
    assert said == f"{network.classes[network([photos / 'a.png'])[0].argmax()]}\n"


def test_the_card_tells_what_the_network_is(finished, exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    summary = json.loads((finished / "summary.json").read_text())
    for said in (
        f"# {tiny.NETWORK}, afa, digits_3",
        "30 training images (3 labelled images a class, drawn by the seed), 1767 test images",
        "trained for 30 steps on `letters`; recipe `afa`, seed 0",
        "| `act` | 4 | 0.0001 | 0.01 | 0 |",
        f"Top-1 {100 * summary['last_top1']:.1f} %",
        "less the mean (0.5, 0.5, 0.5)",
        "The source network was trained with afa_jax on `letters`",
    ):
        assert said in text, said
    run = reopen(finished)
    source = replace(run.experiment.source, weights="imagenet1k_v1")
    published = replace(run, experiment=replace(run.experiment, network="mobilenet_v2", source=source))
    text = card(published, classifier(run))
    assert "published at https://download.pytorch.org/models/mobilenet_v2-b0353104.pth): unknown" in text
    assert "torchvision.models.mobilenet_v2(num_classes=10)" in text


def test_the_state_dict_gives_the_same_logits_in_torchvision(torchvision, tmp_path):
    import torch

    module = zoo.create("mobilenet_v2", 3)
    made = zoo.initialise(module, jax.random.key(0), 32)
    random = np.random.default_rng(0)  # statistics other than those at the start
    stats = jax.tree.map(lambda x: random.uniform(0.5, 1.5, x.shape).astype(np.float32), made["batch_stats"])
    preprocess = Preprocess(32, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = Classifier(module, {**made, "batch_stats": stats}, ("a", "b", "c"), preprocess, 32, False)
    write_weights(tmp_path, network, "mobilenet_v2")
    images = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    seen = ((images / 255 - preprocess.mean) / preprocess.std).astype(np.float32)
    state = torch.load(tmp_path / "model.pth")
    for key, value in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(state[key].numpy(), value)
    theirs = torchvision.models.mobilenet_v2(num_classes=3)
    theirs.load_state_dict(state)
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy(seen).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(network.logits(images), logits, atol=1e-4, rtol=1e-4)


def test_crop_and_normalisation_are_part_of_the_program(finished, tmp_path):
    network = replace(classifier(reopen(finished)), resize=11)
    write_program(tmp_path, network, tiny.NETWORK)
    images = np.random.default_rng(2).integers(0, 256, (3, 11, 11, 3), np.uint8)
    read = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert read.in_avals[0].shape[1:] == (11, 11, 3) and read.in_avals[0].dtype == np.uint8
    np.testing.assert_allclose(read.call(images)["logits"], network.logits(images), atol=1e-5)
    ten = replace(network, ten_crop=True)
    write_program(tmp_path, ten, tiny.NETWORK)
    read = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(read.call(images)["logits"], network.logits(images), atol=1e-5)
    assert "ImageOps.fit(picture, (11, 11)" in card(reopen(finished), ten)


def test_the_files_are_there_together_or_not_at_all(finished, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "digits"

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("afa_jax.export.write_classes", fail)
        assert told(capsys, finished, "-o", folder)[0] == 130
    assert list((tmp_path / "out").iterdir()) == []
    folder.mkdir()
    status, out, err = told(capsys, finished, "-o", folder)
    names = ["README.md", "classes.json", "model.pth", "model.safetensors", "model.stablehlo"]
    assert (status, err) == (0, "") and out == f"{folder}: {', '.join(names)}.\n"
    assert json.loads((folder / "classes.json").read_text()) == list("0123456789")
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    status, out, err = told(capsys, finished, "-o", folder)
    assert (status, out) == (
        2,
        "",
    ) and err == f"export: {folder} is there already: name a new folder with -o, or remove it.\n"
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_refused(finished, capsys, tmp_path):
    for workdir, output, sentence in (
        (tmp_path, tmp_path / "new", "There is no finished run in"),
        (finished, "/dev/null/x/new", "cannot be written"),
    ):
        status, out, err = told(capsys, workdir, "-o", output)
        assert (status, out) == (2, "") and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()
