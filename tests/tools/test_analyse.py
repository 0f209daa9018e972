"""The analyses as they are typed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afa_jax.analysis.analyses import ANALYSES
from afa_jax.config import settle
from afa_jax.experiment import run
from tests import tiny

TOOL = Path(__file__).parents[2] / "tools" / "analyse.py"
sys.path.insert(0, str(TOOL.parent))

import analyse  # noqa: E402


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run without a source network or attention, and one that is not finished, below one folder."""
    root = tmp_path_factory.mktemp("runs")
    run(settle(tiny.config("scratch", network="resnet10_small", steps=1)), root / "scratch" / "seed0")
    (root / "scratch" / "seed1").mkdir()
    shutil.copy(root / "scratch" / "seed0" / "config.json", root / "scratch" / "seed1")
    return root


@pytest.fixture
def root(once, tmp_path):
    return shutil.copytree(once, tmp_path / "runs")


def test_all_that_is_cheap_of_every_finished_run(root, capsys):
    assert analyse.main([str(root), "--number", "2"]) == 0
    told = capsys.readouterr()
    folder = root / "scratch" / "seed0"
    assert told.out.splitlines() == [
        f"{folder}/analysis/generalisation.json: made.",
        f"{folder}/analysis/filter_distances.json: made.",
        f"{folder}: scratch has no attention to show.",
        f"{folder}/analysis/activation_maps.npz: made.",
    ]
    assert told.err.startswith(f"analyse: {root / 'scratch' / 'seed1'} is not finished") and told.err.count("\n") == 1


def test_only_what_is_named(root):
    folder = root / "scratch" / "seed0"
    options = ["--layer", "layer2", "--channels", "3,17", "--number", "1"]
    assert analyse.main(["maps", "distances", str(folder), *options]) == 0
    assert {f.name for f in (folder / "analysis").iterdir()} == {"activation_maps.npz", "filter_distances.json"}
    stages = json.loads((folder / "analysis" / "filter_distances.json").read_text())["stages"]
    assert stages["layer4"]["quantiles"][100] > 0  # against the random weights that it began with


def test_what_cannot_be_made_ends_with_status_2_and_the_rest_is_made(root, tmp_path):
    command = [sys.executable, TOOL, "maps", "distances", root / "scratch" / "seed0", "--layer", "layer9"]
    made = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert made.returncode == 2 and made.stderr.count("\n") == 1 and "Traceback" not in made.stderr
    assert "seed0, maps: resnet10_small has no layer 'layer9' with feature maps; did you mean layer4" in made.stderr
    assert made.stdout.endswith("filter_distances.json: made.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{root}/none"], "analyse: There is no folder"),
        (["{root}/scratch/seed1"], "There is no finished run in"),
        (["dissection", "{root}"], "give --masks FOLDER"),
        (["parts", "{root}"], "digits says nothing of parts"),
        (["maps", "{root}", "--photos", "nowhere.jpg"], "There is no photo nowhere.jpg"),
        (["maps", "{root}", "--channels", "3,1000"], "has channels 0 to 127, and no 1000"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(root, capsys, arguments, sentence):
    assert analyse.main([argument.format(root=root) for argument in arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["attention"], ["x", "--number", "0"], ["x", "--channels", "a"]])
def test_a_command_line_that_means_nothing(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        analyse.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_help_tells_of_every_analysis(capsys):
    with pytest.raises(SystemExit, match="0"):
        analyse.main(["--help"])
    told = capsys.readouterr().out
    assert all(f"    {name} " in told for name in ANALYSES)
