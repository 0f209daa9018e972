"""Every network against PyTorch's, with random weights and random statistics: passes, statistics, a step of SGD.

PyTorch's are torchvision's, and for faces `torch_faces`. By what is stored of their results everywhere, and live, array
for array, where torch is installed.
"""

import importlib.util
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afa_jax.models import convert, zoo
from tests.models import parity_cases as cases

# What takes longest to compile is compared by name.
LONG = ("resnet101", "inception_v3", "lresnet34e_ir", "resnet34")
LESS = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in cases.SIZES]
TORCH = importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")


def build(name, dtype):
    module = zoo.create(name, cases.CLASSES, dtype)
    module = module.clone(dropout=0.0) if hasattr(module, "dropout") else module
    variables = convert.from_state_dict(name, cases.state(name)).variables
    return module, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)


@cache
def evaluated(name):
    """The same results as `torchvision_side.evaluated`, under the same names."""
    module, variables = build(name, jnp.float32)
    taps = cases.taps(name)
    outputs = jax.jit(lambda v, x: zoo.forward(module, v, x, taps=taps))(variables, cases.inputs(name)[0])
    results = {f"tap {tap}": outputs.features[tap] for tap in taps} | {"eval logits": outputs.logits}
    return {key: np.asarray(value) for key, value in results.items()}


@cache
def trained(name):
    """The same results as `torchvision_side.trained`.

    In float64, because a gradient in float32 is a matter of luck: where a rounding error carries one of a million
    activations over ReLU's edge, it moves by a percent.
    """
    images, labels = cases.inputs(name)
    with jax.enable_x64(True):
        module, variables = build(name, jnp.float64)

        def loss(params, stats, images):
            outputs = zoo.forward(module, {"params": params, "batch_stats": stats}, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), outputs

        run = jax.jit(jax.grad(loss, has_aux=True))
        made = run(variables["params"], variables["batch_stats"], images.astype(np.float64))
    gradient, outputs = jax.tree.map(np.asarray, made)
    after = jax.tree.map(lambda p, g: np.asarray(p) - cases.RATE * g, variables["params"], gradient)
    results = {"train logits": outputs.logits}
    for kind, params in (("gradient", gradient), ("after", after)):
        for key, value in convert.to_state_dict({"params": params}).items():
            if not key.startswith("AuxLogits."):  # it has no gradient, because its logits have no weight
                results[f"{kind} {key}"] = value
    return results | unbiased(name, outputs.batch_stats)


def unbiased(name, batch_stats):
    """The new running statistics under torch's names, the variance taken with n - 1 as torch does; Flax takes n."""
    images, _ = cases.inputs(name)
    shapes = zoo.layer_shapes(zoo.create(name, cases.CLASSES), images.shape[1], train=True)
    results = {}
    for key, value in convert.to_state_dict({"batch_stats": batch_stats}).items():
        layer, _, word = key.rpartition(".")
        if word == "running_var":
            count, old = len(images) * np.prod(shapes[layer][1:-1]), 0.9 * cases.state(name)[key]
            value = old + (value - old) * count / (count - 1)
        if word.startswith("running"):
            results[key] = value
    return results


def ours(name):
    return evaluated(name) | trained(name)


@pytest.mark.parametrize("name", LESS)
def test_equals_what_is_stored_of_torchvision(name):
    found = ours(name)
    names = sorted(key for key in found if "logits" not in key)
    with np.load(cases.FOLDER / f"{name}.npz") as stored:
        expected = dict(stored)
    for kind in ("eval logits", "train logits"):
        np.testing.assert_allclose(found[kind], expected[kind], rtol=0, atol=1e-4 * abs(expected[kind]).max())
    # The first number of a row is the array's largest, the measure of what is equal.
    samples, rows = expected["samples"], cases.condense(found)["samples"]
    assert rows.shape == samples.shape == (len(names), 7)
    floor = [1e-8 if key.startswith("gradient") else 0 for key in names]
    right = abs(rows - samples).max(1) <= 1e-4 * samples[:, 0] + np.array(floor)  # which no NaN is
    assert right.all(), [key for key, good in zip(names, right, strict=True) if not good]


@pytest.mark.parametrize("name", LESS)
def test_the_pass_in_train_mode_is_as_close_in_float32(name):
    """Logits and new running statistics; of the gradients `trained` says why not.

    ResNet-101's hundred BatchNorms over 16 positions each are not good for more: torch's own pass in float32 is 3e-4
    from its own in float64.
    """
    tolerance = 5e-4 if name == "resnet101" else 1e-4
    images, _ = cases.inputs(name)
    module, variables = build(name, jnp.float32)
    outputs = jax.jit(lambda v, x: zoo.forward(module, v, x, train=True))(variables, images)
    exact = trained(name)
    found = {"train logits": outputs.logits} | unbiased(name, outputs.batch_stats)
    with np.load(cases.FOLDER / f"{name}.npz") as stored:
        logits, samples = stored["train logits"], stored["samples"]
    np.testing.assert_allclose(found["train logits"], logits, rtol=0, atol=tolerance * abs(logits).max())
    rows = dict(zip(sorted(key for key in ours(name) if "logits" not in key), samples, strict=True))
    for key, value in found.items():
        if key != "train logits":
            np.testing.assert_allclose(cases.sample(key, value), rows[key], rtol=0, atol=tolerance * rows[key][0])
            np.testing.assert_allclose(value, exact[key], rtol=0, atol=tolerance * abs(exact[key]).max())


@pytest.mark.skipif(not TORCH, reason="torch and torchvision are not installed")
@pytest.mark.parametrize("name", LESS)
def test_equals_torchvision_live(name):
    from tests.models import torchvision_side

    state = torchvision_side.build(name).state_dict()
    fixed = cases.fixed_at_one(name)
    found = {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k and k not in fixed}
    assert found == convert.shapes(cases.state(name))
    expected = torchvision_side.evaluated(name, cases.taps(name)) | torchvision_side.trained(name)
    found = ours(name)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        # A gradient may be nothing but rounding, of float32 behind the pool: a bias before a BatchNorm has none.
        tolerance = 1e-4 * abs(value).max() + (1e-8 if key.startswith("gradient") else 0)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("name", cases.SIZES)
def test_round_trip_is_the_identity_bit_for_bit(name):
    """The keys are torchvision's own, as the live tests hold; each counter has a number of its own."""
    layers = [key.removesuffix(".running_var") for key in cases.state(name) if key.endswith(".running_var")]
    counters = {f"{layer}.num_batches_tracked": np.array(n, np.int64) for n, layer in enumerate(layers)}
    state = cases.state(name) | counters
    found = convert.from_state_dict(name, state)
    back = convert.to_state_dict(found.variables, found.counters)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype and back[key].tobytes() == value.tobytes(), key


@pytest.mark.slow
def test_without_the_auxiliary_head_inception_gives_the_same():
    name = "inception_v3"
    found = convert.from_state_dict("inception_v3_no_aux", cases.state(name))
    assert found.dropped and all(key.startswith("AuxLogits.") for key in found.dropped)
    images, _ = cases.inputs(name)
    logits = zoo.forward(zoo.create("inception_v3_no_aux", cases.CLASSES), found.variables, images).logits
    np.testing.assert_allclose(logits, evaluated(name)["eval logits"], rtol=1e-4, atol=1e-5)
