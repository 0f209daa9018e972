"""BatchNorm against Flax's own and against float64, with its gradients and statistics.

Over devices it is compared by `tests/training/test_parallel.py`, in whole steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models.normalization import BatchNorm

SETTINGS = {"momentum": 0.9, "epsilon": 1e-3, "use_fast_variance": False}


def variables(channels):
    rng = np.random.default_rng(1)
    vector = lambda low: jnp.asarray(rng.uniform(low, 2, channels), jnp.float32)  # noqa: E731
    return {"params": {"scale": vector(0.5), "bias": vector(-2)}, "batch_stats": {"mean": vector(-2), "var": vector(1)}}


def run(layer, known, x):
    """Output, new statistics, and the gradients of a sum of the output in which no number counts as another."""

    def total(params, x):
        y, updates = layer.apply({**known, "params": params}, x, mutable=["batch_stats"])
        weights = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y.astype(jnp.float32) * weights).sum(), (y, updates["batch_stats"])

    (_, seen), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(known["params"], x)
    return {"seen": seen, "gradients": gradients}


def assert_equal(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """Whose form is traced."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 3, 6), (8, 6)])
def test_it_equals_flaxs_own(shape, train):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
    settings = {**SETTINGS, "use_running_average": not train}
    found, expected = (run(kind(**settings), variables(6), x) for kind in (BatchNorm, nn.BatchNorm))
    assert_equal(found, expected, rtol=1e-5, atol=2e-6)


def test_it_starts_as_flaxs_own_and_without_a_weight_too():
    x = jnp.ones((2, 3, 3, 5))
    for scale in (True, False):
        settings = {**SETTINGS, "use_running_average": False, "use_scale": scale}
        found, expected = (kind(**settings).init(jax.random.key(0), x) for kind in (BatchNorm, nn.BatchNorm))
        assert_equal(found, expected)
        assert ("scale" in found["params"]) is scale
    known = variables(5)
    known["params"] = {"bias": known["params"]["bias"]}
    x = jax.random.normal(jax.random.key(2), (4, 3, 3, 5))
    assert_equal(*(run(kind(**settings), known, x) for kind in (BatchNorm, nn.BatchNorm)), rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("backend")
def test_a_channel_whose_mean_is_large_against_its_spread():
    """The gradients against float64, where the mean is a thousand times the spread."""
    x = np.random.default_rng(0).normal(1000, 1, (16, 4, 4, 2)).astype(np.float32)
    known, layer = variables(2), BatchNorm(**SETTINGS, use_running_average=False)
    found = run(layer, known, jnp.asarray(x))
    exact = x.astype(np.float64)
    weights = np.sin(np.arange(x.size)).reshape(x.shape)
    mean, spread = exact.mean((0, 1, 2)), 1 / np.sqrt(exact.var((0, 1, 2)) + 1e-3)
    unit, scale = (exact - mean) * spread, np.asarray(known["params"]["scale"], np.float64)
    projected = weights - weights.mean((0, 1, 2)) - unit * (weights * unit).mean((0, 1, 2))
    np.testing.assert_allclose(found["gradients"][1], scale * spread * projected, atol=2e-3)
    np.testing.assert_allclose(found["gradients"][0]["scale"], (weights * unit).sum((0, 1, 2)), rtol=2e-3)
    np.testing.assert_allclose(found["seen"][0], scale * unit + known["params"]["bias"], atol=2e-3)
    np.testing.assert_allclose(
        found["seen"][1]["var"], 0.9 * known["batch_stats"]["var"] + 0.1 * exact.var((0, 1, 2)), 1e-4
    )


def test_the_gradient_for_the_images_is_blind_to_shift_and_scale():
    """The output does not change when a channel is shifted or stretched, so neither direction has a gradient."""
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    layer = BatchNorm(momentum=0.9, epsilon=0.0, use_running_average=False)
    gradient = run(layer, variables(3), x)["gradients"][1]
    np.testing.assert_allclose(gradient.sum((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose((gradient * x).sum((0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize(("images", "parameters"), [(jnp.float32, jnp.float64), (jnp.float64, jnp.float32)])
def test_a_gradient_has_the_type_of_what_it_is_for(images, parameters):
    with jax.enable_x64(True):
        known = {**variables(3), "params": {name: jnp.ones(3, parameters) for name in ("scale", "bias")}}
        x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3), images)
        of_parameters, of_images = run(BatchNorm(**SETTINGS, use_running_average=False), known, x)["gradients"]
    assert of_images.dtype == images
    assert {leaf.dtype for leaf in jax.tree.leaves(of_parameters)} == {jnp.dtype(parameters)}


def test_in_bfloat16_statistics_and_gradients_of_parameters_are_of_float32():
    x = 1 + jax.random.normal(jax.random.key(0), (8, 4, 4, 3), jnp.bfloat16)
    settings = {**SETTINGS, "use_running_average": False, "dtype": jnp.bfloat16}
    found, expected = (run(kind(**settings), variables(3), x) for kind in (BatchNorm, nn.BatchNorm))
    assert found["seen"][0].dtype == found["gradients"][1].dtype == jnp.bfloat16
    assert found["gradients"][0]["scale"].dtype == found["seen"][1]["var"].dtype == jnp.float32
    found, expected = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree) for tree in (found, expected))
    assert_equal(found, expected, rtol=0.02, atol=0.02)


def test_the_variance_in_bfloat16_where_the_mean_is_large():
    """Of the values as they are in bfloat16."""
    x = jnp.asarray(np.random.default_rng(0).normal((16, -8), (1, 0.5), (16, 14, 14, 2)), jnp.bfloat16)
    layer = BatchNorm(momentum=0.0, epsilon=1e-3, use_running_average=False)
    _, updates = layer.apply(variables(2), x, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=2e-3)


def test_the_variance_of_one_value_is_never_below_zero():
    """Which it is by the sums of these, as they are rounded: they are 2·10⁻⁴ apart."""
    x = jnp.full((16, 28, 28, 3), 100.5, jnp.bfloat16)
    layer = BatchNorm(momentum=0.0, epsilon=1e-3, use_running_average=False)
    y, updates = jax.jit(lambda x: layer.apply(variables(3), x, mutable=["batch_stats"]))(x)
    np.testing.assert_array_equal(updates["batch_stats"]["var"], 0)
    assert np.isfinite(y).all()


def test_the_variance_where_the_first_image_is_like_none_of_the_others():
    """Sums are taken around its mean."""
    x = np.random.default_rng(0).normal(0, 1, (16, 6, 6, 3)).astype(np.float32)
    x[0] += 1000 * np.array([1, -10, 100], np.float32)
    layer = BatchNorm(momentum=0.0, epsilon=1e-3, use_running_average=False)
    _, updates = layer.apply(variables(3), x, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=1e-5)


def test_the_sums_of_several_devices_are_plain(monkeypatch):
    def program():
        x = jnp.ones((8, 5, 3, 6))
        layer = BatchNorm(**SETTINGS, use_running_average=False)
        return str(jax.make_jaxpr(lambda x: run(layer, variables(6), x))(x))

    assert " reduce[" in program()
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert " reduce[" not in program()


@pytest.mark.parametrize("batch", [8, 3])  # a CPU sums eight parts at once, if they come out even
def test_the_gradients_in_both_ways_of_summing(batch):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (batch, 5, 3, 6))
    settings = {**SETTINGS, "use_running_average": False}
    found, expected = (run(kind(**settings), variables(6), x) for kind in (BatchNorm, nn.BatchNorm))
    assert_equal(found, expected, rtol=1e-5, atol=5e-6)
    program = str(jax.make_jaxpr(lambda x: run(BatchNorm(**settings), variables(6), x))(x))
    assert program.count(" reduce[") == (2 if batch == 8 else 0)  # of two arrays at once, forward and backward


def test_what_is_put_out_is_as_fine_as_is_asked_for():
    x = jax.random.normal(jax.random.key(0), (8, 5, 3, 6), jnp.bfloat16)
    settings = {**SETTINGS, "use_running_average": False, "dtype": jnp.float32}
    found, expected = (run(kind(**settings), variables(6), x)["seen"][0] for kind in (BatchNorm, nn.BatchNorm))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
