"""Saved networks: the round trip, new heads, and every way in which a file can be wrong."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from afa_jax.errors import UserError
from afa_jax.models import weights, zoo

NAME = "resnet10_small"


@pytest.fixture(scope="module")
def variables():
    return zoo.initialise(zoo.create(NAME, 4), jax.random.key(3), 32)


@pytest.fixture
def saved(tmp_path, variables):
    weights.save(tmp_path, NAME, variables, classes=("a", "b", "c", "d"))
    return tmp_path


def test_round_trip_is_exact(saved, variables):
    for source in (saved, saved / weights.FILE, str(saved)):
        loaded = weights.load(NAME, source)
        assert jax.tree.structure(loaded) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert weights.describe(saved) == {"network": NAME, "classes": ["a", "b", "c", "d"]}
    assert [file.name for file in saved.iterdir()] == [weights.FILE]


def test_a_head_of_another_size_is_made_new_and_nothing_else(saved, variables):
    loaded, other = (weights.load(NAME, saved, 7, seed=seed) for seed in (0, 1))
    assert loaded["params"]["fc"]["kernel"].shape == (128, 7)
    assert (loaded["params"]["fc"]["kernel"] != other["params"]["fc"]["kernel"]).any()
    loaded["params"]["fc"] = variables["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    same = weights.load(NAME, saved, 4)
    np.testing.assert_array_equal(same["params"]["fc"]["kernel"], variables["params"]["fc"]["kernel"])


@pytest.mark.parametrize("name", ["~no-such-user/net.pth", "x" * 300, "a\0b", "/dev/null"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(UserError, match="There are no weights"):
        weights.load(NAME, name)


def test_an_unknown_network(saved):
    with pytest.raises(UserError, match="no network 'resnet55'; did you mean"):
        weights.load("resnet55", saved)


@pytest.mark.parametrize("counters", [3, [1], "x", {"bn1": "y"}])
def test_a_damaged_description(saved, counters):
    arrays = load_file(saved / weights.FILE)
    save_file(arrays, saved / weights.FILE, {"afa_jax": json.dumps({"network": NAME, "counters": counters})})
    with pytest.raises(UserError, match="what it says of itself is damaged"):
        weights.load(NAME, saved)


def test_numbers_that_numpy_does_not_have(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "net.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="numbers of a type that cannot be read"):
        weights.load(NAME, tmp_path / "net.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_disk_that_is_full_while_writing_leaves_nothing(tmp_path, variables, monkeypatch, suffix):
    """A folder in place of the file: nothing can be renamed there."""
    (tmp_path / f"net.{suffix}").mkdir()
    (tmp_path / f"net.{suffix}" / "x").touch()
    with pytest.raises((UserError, OSError)):
        weights.export(tmp_path / f"net.{suffix}", variables)
    assert [path.name for path in tmp_path.iterdir()] == [f"net.{suffix}"]


def test_what_the_safetensors_library_cannot_write_is_one_sentence(tmp_path, variables, monkeypatch):
    def full(*arguments):
        Path(arguments[1]).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match=r"model.safetensors cannot be written \(I/O error: No space left"):
        weights.save(tmp_path, NAME, variables)
    assert list(tmp_path.iterdir()) == []


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="There are no weights"):
        weights.load(NAME, tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="There are no weights"):
        weights.load(NAME, tmp_path)


def test_a_truncated_file(saved):
    file = saved / weights.FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="no whole safetensors file"):
        weights.load(NAME, file)


def test_another_network(saved):
    with pytest.raises(UserError, match="holds the network 'resnet10_small', not 'resnet18'"):
        weights.load("resnet18", saved)


def test_all_differing_keys_are_told(saved):
    file = saved / weights.FILE
    arrays = load_file(file)
    del arrays["params/bn1/scale"]
    arrays["params/bn9/scale"] = np.zeros(3, np.float32)
    arrays["params/conv1/kernel"] = np.zeros((5, 5, 3, 16), np.float32)
    save_file(arrays, file, {"afa_jax": '{"network": "resnet10_small"}'})
    with pytest.raises(UserError) as error:
        weights.load(NAME, file)
    for part in (
        "1 missing (params/bn1/scale)",
        "1 unexpected (params/bn9/scale)",
        "1 of another shape (params/conv1/kernel: [5, 5, 3, 16] for [3, 3, 3, 16])",
    ):
        assert part in str(error.value)
