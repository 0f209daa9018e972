"""The benchmark's own arithmetic and files, on small networks; it measures nothing here that a test would judge."""

import json
import sys
from pathlib import Path

import pytest

from tests.data.archives import picture

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import benchmark
import publish_comparison


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("AFA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"


def test_delta_adds_up_all_filters_of_all_taps(results, monkeypatch, capsys):
    """A clock that says 2 s for a whole pass, and 1 s once and 0.25 s for each filter that is left out."""

    def seconds(call, repeats):
        last = call.args[-1]  # the filters that are left out, or the mask of a whole pass
        return 1 + 0.25 * len(last) if last.dtype == "int32" else 2.0

    monkeypatch.setattr(benchmark, "seconds", seconds)
    assert benchmark.main(["delta", "--network", "resnet10_small", "--batch", "2"]) == 0
    result = json.loads((results / "delta_weights_resnet10_small.json").read_text())
    rows = result["seconds"]
    filters = [row["filters"] for row in rows]
    assert all((row["each"], row["once"]) == pytest.approx((0.25, 1)) for row in rows)
    assert result["ratio"] == pytest.approx(2 * sum(filters) / (len(filters) + 0.25 * sum(filters)))
    assert result["definition_hours_a_batch"] == pytest.approx(2 * sum(filters) / 3600)
    assert f"a ratio of {result['ratio']:.1f}" in capsys.readouterr().out
    assert result["device"] and result["versions"]["jax"] and result["finished"]


def test_data_measures_every_way_of_reading(results, tmp_path, capsys):
    for i in range(10):
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").write_bytes(picture(i))
    command = ["data", "--photos", str(tmp_path / "photos"), "--network", "resnet10_small", "--batch", "2"]
    assert benchmark.main([*command, "--steps", "3", "--count", "4", "--repeats", "2"]) == 0
    result = json.loads((results / "data_cpu.json").read_text())
    assert result["images"] == 4 and len(result["images_per_second"]) == 2
    assert all(rate > 0 for reading in result["images_per_second"] for rate in reading.values())
    assert [len(row) for row in result["table"]] == [2] * 7
    assert result["table"][-1][1].endswith(" %")
    table = publish_comparison.table(result)
    assert capsys.readouterr().out.strip() == table and table.count("\n") == 7
    assert benchmark.main([*command[:1], "--photos", str(tmp_path)]) == 2
    assert "has no photos under train/<class>/" in capsys.readouterr().err
