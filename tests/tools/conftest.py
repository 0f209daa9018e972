"""The tools can be imported, and the benchmark keeps its results in a folder of the test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    import benchmark

    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"
