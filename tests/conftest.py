"""Every test runs on the CPU with several devices and a cache of its own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder of what is trained once, shared by the tests of a session and by nobody else."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AFA_JAX_CACHE"] = str(folder)
    return folder


@pytest.fixture
def torchvision():
    """torchvision itself, where it is installed with torch; the tests that want it are skipped elsewhere."""
    pytest.importorskip("torch")
    from tests.models.torchvision_side import torchvision

    return torchvision
