"""Every command of docs/tutorial.md, one after the other, on a small folder of photos."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
# A network that is trained here stands in for the one that is fetched, and a few steps for many.
SMALL = {
    "--config.network=mobilenet_v2": "--config.network=resnet10_small",
    "--config.data.per_class=20": "--config.data.per_class=4",
    "--config.steps=300": "--config.steps=6",
    "--config.batch_size=32": "--config.batch_size=8",
    "--config.eval_every=50": "--config.eval_every=3",
}
MORE = ["data.image_size=16", "data.resize=18", "source.weights=train", "source.dataset=letters", "source.steps=5"]


def commands():
    """Those in the shell blocks, as lists of words."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def folder(tmp_path):
    """`photos/{train,test}/<class>/*`, and the files of a clone that the commands name."""
    random = np.random.default_rng(0)
    for split, number in (("train", 5), ("test", 3)):
        for colour, name in ((40, "shoes"), (120, "hat"), (220, "shirt")):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(number):
                noise = random.integers(-30, 30, (40, 30, 3))
                Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(place / f"{i}.jpg")
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_tutorial_has_the_commands_that_are_tested():
    programs = [words[0] for words in commands()]
    assert programs == ["python3", ".venv/bin/pip", ".", "git", *["python"] * 8]
    said = {word for words in commands() for word in words}
    assert set(SMALL) <= said


@pytest.mark.slow
def test_every_command_works_as_written(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in commands():
        if words[0] != "python":
            continue  # the environment is this one, the photos are made
        given = [SMALL.get(word, word) for word in words[1:]]
        given += [f"--config.{one}" for one in MORE] if "afa_jax.main" in given else []
        done = subprocess.run([sys.executable, *given], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(given)}\n{done.stdout}\n{done.stderr}"
    assert "photos_4" in (folder / "runs" / "clothes" / "report" / "index.html").read_text(encoding="utf-8")
    assert len((folder / "said.csv").read_text().splitlines()) == 1 + 9
    assert len(list((folder / "attention").rglob("*.png"))) == 3
    assert 0 <= json.loads((folder / "assessment.json").read_text())["top1"] <= 1
    assert {f.name for f in (folder / "exported").iterdir()} >= {"model.pth", "model.stablehlo", "README.md"}
    with Image.open(folder / "photos.png") as sheet:
        assert sheet.size[0] > 100
