"""One finished run for all tests of what it is good for, and a folder of photos; who changes them takes a copy."""

import numpy as np
import pytest
from PIL import Image

from afa_jax.config import settle
from afa_jax.experiment import run
from tests import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run of `afa` on digits."""
    folder = tmp_path_factory.mktemp("inference") / "run"
    run(settle(tiny.config("afa")), folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Five photos of noise in two folders, and what is none between them."""
    folder, random = tmp_path / "photos", np.random.default_rng(3)
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "d.png", "sub/e.png", "sub/f.png")):
        Image.fromarray(random.integers(0, 256, (9 + i, 12, 3), np.uint8)).save(folder / name)
    (folder / "c.jpg").write_text("no photo")
    (folder / ".hidden").write_text("no photo")
    return folder
