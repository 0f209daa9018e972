"""The converter as it is typed: both ways, what it tells, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from afa_jax.models import convert, torch_file, weights
from tests.models import parity_cases as cases

NAME = "resnet10_small"
TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"
sys.path.insert(0, str(TOOL.parent))

from convert_weights import main  # noqa: E402


@pytest.fixture
def file(tmp_path):
    layers = [key.removesuffix("running_var") for key in cases.state(NAME) if key.endswith("running_var")]
    state = cases.state(NAME) | {f"{layer}num_batches_tracked": np.array(5) for layer in layers}
    path = tmp_path / "net.pth"
    torch_file.write(path, {f"module.{key}": value for key, value in state.items()})
    return path


def test_there_and_back_is_the_identity(file, tmp_path, capsys):
    assert main([NAME, str(file), str(tmp_path / "ours")]) == 0
    told = capsys.readouterr().out
    assert "conv1.weight" in told and "params/conv1/kernel" in told and "3 × 3 × 3 × 16" in told
    assert f"{len(cases.state(NAME))} arrays" in told and "counters (num_batches_tracked)" in told
    found = weights.load(NAME, tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, found, convert.from_state_dict(NAME, cases.state(NAME)).variables)
    for output, read in (("back.pth", torch_file.read), ("back.safetensors", load_file)):
        assert main([NAME, str(tmp_path / "ours"), str(tmp_path / output)]) == 0
        back = read(tmp_path / output)
        before = {key.removeprefix("module."): value for key, value in torch_file.read(file).items()}
        assert back.keys() == before.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(back[key], value)
            assert back[key].dtype == value.dtype


def test_what_is_left_out_is_told(tmp_path, capsys):
    torch_file.write(tmp_path / "inception.pth", cases.state("inception_v3"))
    assert main(["inception_v3_no_aux", str(tmp_path / "inception.pth"), str(tmp_path / "ours")]) == 0
    assert "left out, which this network is defined without: AuxLogits." in capsys.readouterr().out


def test_a_face_networks_file_without_a_head(tmp_path, capsys):
    state = {key: value for key, value in cases.state("mobilefacenet").items() if not key.startswith("head.")}
    torch_file.write(tmp_path / "face.pth", state)
    assert main(["mobilefacenet", str(tmp_path / "face.pth"), str(tmp_path / "ours")]) == 0
    told = capsys.readouterr().out
    assert "no classification layer: it is made new" in told and "params/blocks/4/conv/6/kernel" in told
    assert main(["mobilefacenet", str(tmp_path / "ours"), str(tmp_path / "back.pth")]) == 0
    back = torch_file.read(tmp_path / "back.pth")
    assert set(state) == {key for key in back if not key.endswith("num_batches_tracked")}
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_a_wrong_network_ends_with_status_2_and_leaves_nothing(file, tmp_path):
    command = [sys.executable, TOOL, "resnet18", file, tmp_path / "ours"]
    made = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert made.returncode == 2 and "missing:\n  layer1.1.bn1.bias\n" in made.stdout
    assert made.stderr.startswith(f"convert_weights: {file}: The weights do not fit") and made.stderr.count("\n") == 1
    assert "it looks like resnet10_small" in made.stderr
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_an_output_that_cannot_be_written(file, tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert main([NAME, str(file), str(tmp_path / "taken" / "ours")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_with_a_dot_is_a_folder(file, tmp_path):
    (tmp_path / "dir.v2").mkdir()
    assert main([NAME, str(file), str(tmp_path / "dir.v2")]) == 0
    assert weights.describe(tmp_path / "dir.v2")["network"] == NAME


def test_an_unknown_network(file, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["resnet55", str(file), str(tmp_path / "ours")])
    assert "invalid choice: 'resnet55'" in capsys.readouterr().err
