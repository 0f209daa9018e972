"""One finished run of two stages for all tests of the analyses; who changes it takes a copy."""

import shutil

import pytest

from afa_jax.analysis.trained import TrainedRun
from afa_jax.config import settle
from afa_jax.experiment import run
from tests import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("analysis") / "run"
    run(settle(tiny.config("afa", network="resnet10_small")), folder)
    return folder


@pytest.fixture(scope="session")
def trained(finished):
    """It, opened; nothing that is tested changes it."""
    return TrainedRun(finished)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(finished, tmp_path / "copied")
