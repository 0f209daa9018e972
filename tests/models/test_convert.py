"""A `state_dict` in every dress in which it comes, and every way in which it does not fit."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from afa_jax.errors import UserError
from afa_jax.models import convert, torch_file, weights, zoo
from tests.models import parity_cases as cases
from tests.models.legacy_files import write_stream, write_tar

NAME = "resnet10_small"
SMALL = ("resnet10_small", "mobilenet_v2", "inception_v3")


@pytest.fixture(scope="module")
def state():
    return cases.state(NAME)


@pytest.fixture(scope="module")
def expected(state):
    return convert.from_state_dict(NAME, state).variables


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes(state, expected, wrapper, prefix):
    content = {prefix + key: value for key, value in state.items()}
    content = content if wrapper is None else {wrapper: content, "epoch": 3, "best_prec1": 0.5}
    equal(convert.from_state_dict(NAME, content).variables, expected)


def test_one_wrapper_in_another(state, expected):
    equal(convert.from_state_dict(NAME, {"model": {"state_dict": state}, "optimizer": {}}).variables, expected)


def test_a_file_of_2017_from_python_2(tmp_path, state, expected):
    """Places365's kind: a pickle stream of byte strings, wrapped, each key with `module.`."""
    path = tmp_path / "resnet_places365.pth.tar"
    write_stream(path, {f"module.{k}": v for k, v in state.items()}, python2=True, arch=NAME, epoch=90, best_prec1=54.6)
    equal(weights.load(NAME, path), expected)


def test_a_tar_of_2016(tmp_path, state, expected):
    """The oldest ResNets' kind; the view that its writer makes is one of another array's numbers."""
    first = next(iter(state))
    shared = {**state, "fc.bias": state[first].reshape(-1)[3 : 3 + cases.CLASSES].copy()}
    write_tar(
        tmp_path / "resnet.pth", {key: shared[key] for key in (*[k for k in shared if k != "fc.bias"], "fc.bias")}
    )
    found = weights.load(NAME, tmp_path / "resnet.pth")
    np.testing.assert_array_equal(found["params"]["fc"]["bias"], shared["fc.bias"])
    equal({**found["params"], "fc": expected["params"]["fc"]}, expected["params"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_precisions_are_read_as_float32(tmp_path, state, dtype, suffix):
    stored = {key: value.astype(dtype) for key, value in state.items()}
    path = tmp_path / f"net.{suffix}"
    torch_file.write(path, stored) if suffix == "pth" else save_file(stored, path)
    found = convert.to_state_dict(weights.load(NAME, path))
    for key, value in stored.items():
        np.testing.assert_array_equal(found[key], value.astype(np.float32))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_export_is_read_back_bit_for_bit(tmp_path, expected, suffix):
    weights.export(tmp_path / f"net.{suffix}", expected, {"bn1": 7})
    found = weights.read(NAME, tmp_path / f"net.{suffix}")
    equal(found.variables, expected)
    assert found.counters["bn1"] == 7 and found.counters["layer1.0.bn1"] == 0
    assert [file.name for file in tmp_path.iterdir()] == [f"net.{suffix}"]


@pytest.mark.parametrize("name", SMALL)
def test_a_new_head_is_pytorchs_and_all_else_stays(name):
    """Linear's start is uniform within one over the square root of its inputs; the teacher keeps what was loaded."""
    source = convert.from_state_dict(name, cases.state(name)).variables
    before = jax.tree.map(np.array, source)
    target = weights.with_new_head(source, name, 11, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, source, before)
    spec = zoo.NETWORKS[name]
    old, new = ({**convert.to_state_dict(variables)} for variables in (source, target))
    for head in spec.heads:
        kernel, bias = new.pop(f"{head}.weight"), new.pop(f"{head}.bias")
        bound = old.pop(f"{head}.weight").shape[1] ** -0.5
        assert kernel.shape[0] == old.pop(f"{head}.bias").shape[0] + 4 == len(bias)
        assert 0.95 * bound < abs(kernel).max() <= bound and abs(bias).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    assert new.keys() == old.keys()
    for key, value in old.items():
        np.testing.assert_array_equal(new[key], value)


def test_an_auxiliary_head_is_left_out_by_name():
    found = convert.from_state_dict("inception_v3_no_aux", cases.state("inception_v3"))
    assert found.dropped and all(key.startswith("AuxLogits.") for key in found.dropped)
    assert "AuxLogits" not in found.variables["params"]


def refused(network, content):
    with pytest.raises(UserError) as error:
        convert.from_state_dict(network, content)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed_both_ways(state):
    changed = {key: value for key, value in state.items() if key not in ("bn1.weight", "layer3.0.bn2.running_var")}
    changed |= {"extra.weight": np.zeros(3), "conv1.weight": np.zeros((16, 3, 5, 5))}
    told = refused(NAME, changed)
    assert "2 missing (bn1.weight, layer3.0.bn2.running_var)" in told
    assert "1 unexpected (extra.weight)" in told
    assert "1 of another shape (conv1.weight: [16, 3, 5, 5] for [16, 3, 3, 3])" in told


def test_the_network_that_a_file_looks_like_is_named():
    assert "it looks like mobilenet_v2" in refused("resnet18", cases.state("mobilenet_v2"))
    assert "it looks like resnet34" in refused(
        "resnet18", {f"module.{k}": v for k, v in cases.state("resnet34").items()}
    )
    assert "looks like" not in refused("resnet18", {"fc.weight": np.zeros((3, 4)), "odd": np.zeros(2)})


def test_the_network_is_named_though_the_head_is_gone():
    body = {key: value for key, value in cases.state("resnet34").items() if not key.startswith("fc.")}
    assert "it looks like resnet34" in refused("resnet18", body)


def test_every_fault_is_listed_beside_the_sentence(state):
    with pytest.raises(convert.MisfitError) as error:
        convert.from_state_dict(NAME, {key: v for key, v in state.items() if not key.startswith("layer1.")})
    missing = [key for key in state if key.startswith("layer1.")]
    assert error.value.faults == {"missing": sorted(missing)} and f"{len(missing)} missing" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bn1.num_batches_tracked": np.zeros(3, np.int64)}, "bn1.num_batches_tracked is no whole number"),
        ({"bn1.num_batches_tracked": np.array(np.nan)}, "bn1.num_batches_tracked is no whole number"),
        ({"no.such.num_batches_tracked": np.array(1)}, r"1 unexpected \(no.such.num_batches_tracked\)"),
        ({"bn1.weight": np.zeros(16, np.complex64)}, "bn1.weight has numbers of type complex64"),
        ({"bn1.weight": np.zeros(16, np.int64)}, "bn1.weight has numbers of type int64"),
        ({"fc.weight": np.zeros((0, 128)), "fc.bias": np.zeros(0)}, "2 of another shape"),
    ],
)
def test_odd_arrays_are_told(state, changes, sentence):
    assert re.search(sentence, refused(NAME, state | changes))


def test_a_name_under_which_there_is_no_dictionary_is_passed_over(state, expected):
    equal(convert.from_state_dict(NAME, {"model": "resnet", "net_state_dict": state}).variables, expected)


def test_what_others_write_beside_their_arrays_does_not_matter(tmp_path, state, expected):
    for metadata in ({"about": "my nice model"}, {"about": '{"author": "x"}'}, {"format": "pt"}):
        save_file(state, tmp_path / "net.safetensors", metadata)
        equal(weights.load(NAME, tmp_path / "net.safetensors"), expected)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}, {"state_dict": 3}, {1: np.zeros(2)}])
def test_what_is_no_state_dict_is_told(content):
    assert "The file holds no state_dict" in refused(NAME, content)
