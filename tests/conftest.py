"""Every test runs on one CPU device, with a cache of its own; `tests/processes.py` starts those that want more."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, worker_id):
    """The folder of what is trained once, shared by the tests of a session and by nobody else.

    What is compiled is kept too, for all processes that work on the session's tests: many compile the same step.
    """
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AFA_JAX_CACHE"] = str(folder)
    base = tmp_path_factory.getbasetemp()
    compiled = (base if worker_id == "master" else base.parent) / "compiled"
    for name, value in (("jax_compilation_cache_dir", compiled), ("jax_persistent_cache_min_compile_time_secs", 0.3)):
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value if name.endswith("secs") else str(value))
    return folder


@pytest.fixture
def torchvision():
    """torchvision itself, where it is installed with torch; the tests that want it are skipped elsewhere."""
    pytest.importorskip("torch")
    from tests.models.torchvision_side import torchvision

    return torchvision
