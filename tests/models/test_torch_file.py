"""PyTorch's files without PyTorch: what is written is read, and what is damaged or hostile is refused in a sentence."""

import importlib.util
import os
import pickle
import zipfile

import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.models import torch_file

STATE = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.half": np.linspace(0, 1, 5).astype(np.float16),
    "a.num_batches_tracked": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        np.testing.assert_array_equal(found[key], value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.pth"
    torch_file.write(path, STATE)
    return path


def test_what_is_written_is_read(file):
    same(torch_file.read(file), STATE)
    assert [f.name for f in file.parent.iterdir()] == ["net.pth"]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": Hostile()}, 2))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system, .* it is refused"):
        torch_file.read(path)
    path.write_bytes(pickle.dumps(Hostile(), 2))  # the older container is a bare pickle
    with pytest.raises(UserError, match=r"(posix|nt)\.system"):
        torch_file.read(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"", "no PyTorch file"),
        (bytes(range(256)) * 9, "no PyTorch file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, match):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match=match):
        torch_file.read(tmp_path / "net.pth")


def test_a_cut_or_flipped_file_is_refused(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="no whole PyTorch file"):
        torch_file.read(file)
    place = whole.index(STATE["a.weight"].tobytes()) + 30
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match="no whole PyTorch file"):
        torch_file.read(file)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_own_files(tmp_path, zipped):
    import torch

    state = {key: torch.from_numpy(value) for key, value in STATE.items()}
    state["shared"], state["turned"] = state["a.weight"][1:], state["a.weight"].permute(2, 0, 1)
    path = tmp_path / "net.pth.tar"
    content = {"state_dict": state, "epoch": 3, "arch": "net", "best": 0.5}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = torch_file.read(path)
    assert (found["epoch"], found["arch"], found["best"]) == (3, "net", 0.5)
    same(found["state_dict"], {key: value.numpy() for key, value in state.items()})
    torch_file.write(path, STATE)
    back = torch.load(path, weights_only=True)
    same({key: value.numpy() for key, value in back.items()}, STATE)
