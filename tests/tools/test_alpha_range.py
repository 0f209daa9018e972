"""The alpha tool: what counts as working, what is kept, and that a run that blows up is counted."""

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import alpha_range  # noqa: E402


def row(alpha, top1, diverged=0, convention="released"):
    return {"network": "net", "convention": convention, "alpha": alpha, "top1": top1, "diverged": diverged}


def test_the_table_says_what_works_and_what_blows_up(monkeypatch):
    monkeypatch.setattr(alpha_range, "ALPHAS", {"released": [1e-3, 1e-2, 0.1, 1.0], "normalised": [1.0, 10.0]})
    rows = [
        row(1e-3, [90.0, 92.0]),
        row(1e-2, [91.0, 88.5]),  # 1.25 points below the best mean
        row(0.1, [80.0, 80.0]),
        row(1.0, [95.0], diverged=1),  # the best mean, of the seed that was left
        row(1.0, [], diverged=2, convention="normalised"),
        row(10.0, [], diverged=2, convention="normalised"),
    ]
    lines = alpha_range.table(rows).splitlines()
    assert lines[2] == "| net | released | 0.001 | 0.01 | 1 | 1 |"
    assert lines[3] == "| net | normalised | – | – | – | 1 |"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The tool with two alphas, writing into a folder of the test."""
    monkeypatch.setattr(alpha_range, "ROOT", tmp_path)
    monkeypatch.setattr(alpha_range, "ALPHAS", {"released": [1e-6, 1e30], "normalised": [1e-3]})
    config = TOOLS.parent / "configs" / "quickstart.py"
    options = ["--config", str(config), "--networks", "resnet10_small", "--size", "resnet10_small=8", "--steps", "4"]
    return lambda *more: alpha_range.main([*options, "--workdir", str(tmp_path / "runs"), *more])


@pytest.mark.slow
def test_a_sweep_from_the_command_to_the_files(tool, tmp_path, monkeypatch, capsys):
    seen = []
    honest = alpha_range.run
    monkeypatch.setattr(alpha_range, "run", lambda e, folder: seen.append(e) or honest(_quick(e), folder))
    assert tool() == 0
    result = json.loads((tmp_path / "docs" / "results" / "alpha_range.json").read_text())
    assert [(r["convention"], r["alpha"], len(r["top1"]), r["diverged"]) for r in result["rows"]] == [
        ("released", 1e-6, 3, 0),
        ("released", 1e30, 0, 3),
        ("normalised", 1e-3, 3, 0),
    ]
    assert result["steps"] == 4 and result["sizes"] == {"resnet10_small": 8} and result["device"]
    assert {(e.seed, e.convention, e.methods["ast"]["alpha"], e.methods["act"]["alpha"]) for e in seen} == {
        (seed, convention, alpha, alpha)
        for seed in range(3)
        for convention, alpha in (("released", 1e-6), ("released", 1e30), ("normalised", 1e-3))
    }
    assert all((e.data.image_size, e.data.resize) == (8, 9) for e in seen)
    assert (tmp_path / "docs" / "alpha_range.svg").stat().st_size > 1000
    assert "| resnet10_small | released | 1e-06 | 1e-06 | 0 | 1e+30 |" in capsys.readouterr().out


def _quick(experiment):
    """The same with a source network that is trained for a moment."""
    from dataclasses import replace

    return replace(experiment, source=replace(experiment.source, steps=2))


def test_a_wrong_network_is_one_sentence(tool, capsys):
    assert tool("--networks", "resnet10") == 2
    said = capsys.readouterr().err
    assert said.startswith("alpha_range: There is no network 'resnet10'; did you mean") and said.count("\n") == 1


@pytest.mark.parametrize("size", ["resnet10_small", "resnet10_small=big", "resnet18=32", "resnet10_small=4"])
def test_a_wrong_size_is_one_sentence(tool, size, capsys):
    assert tool("--size", size) == 2
    assert f"--size {size} must be NETWORK=PIXELS, one of resnet10_small" in capsys.readouterr().err
