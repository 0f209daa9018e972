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
