"""Convolutions by Winograd's way against XLA's own, with the gradients, and when they are taken."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afa_jax.models import convolution, layers, winograd
from afa_jax.models.networks.resnet import BasicBlock
from afa_jax.training.objective import is_costly
from tests.models.test_convolution import NHWC, native, with_gradients
from tests.processes import ROOT

AROUND = ((1, 1), (1, 1))


def plain(x, kernel, padding):
    return native(x, kernel, (1, 1), padding, 1)


def arrays(images, channels, dtype=np.float32, sides=(3, 3)):
    rng = np.random.default_rng(0)
    return rng.normal(size=(*images, channels[0])).astype(dtype), rng.normal(size=(*sides, *channels)).astype(dtype)


def around(sides):
    return tuple((side // 2, side // 2) for side in sides)


def both_ways(x, kernel, padding):
    return (with_gradients(partial(way, padding=padding), x, kernel) for way in (winograd.winograd, plain))


EVERY_KERNEL = pytest.mark.parametrize("sides", winograd._FILTERINGS, ids=lambda sides: "{}×{}".format(*sides))


@pytest.mark.parametrize(("outputs", "points"), [(1, ()), (1, (0, 3)), (2, (0, 1, -1)), (4, (0, 1, -1, 2, -0.5, 4))])
def test_filtering_is_the_plain_sum_of_one_row(outputs, points):
    f = winograd.Filtering.at(outputs, points)
    d, g = np.random.default_rng(0).normal(size=(2, len(points) + 1))
    g = g[: f.side]
    assert f.outputs == outputs and len(d) == outputs + f.side - 1
    np.testing.assert_allclose(f.A.T @ ((f.G @ g) * (f.B.T @ d)), np.correlate(d, g), atol=1e-12)


def test_at_the_points_of_lavin_and_gray_it_has_their_matrices():
    """F(2, 3) and F(4, 3) of §4.1 and §4.3, each place but for a factor that its B and its G share."""
    two, four = winograd.Filtering.at(2, (0, 1, -1)), winograd.Filtering.at(4, (0, 1, -1, 2, -2))
    for found, B, G, A in [
        (two, [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
         [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], [[1, 1, 1, 0], [0, 1, -1, -1]]),
        (four, [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
         np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
         [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    ]:  # fmt: skip
        ours, theirs = ([np.multiply.outer(np.multiply.outer(a, b), g) for a, b, g in zip(*f, strict=True)]
                        for f in ((found.A, found.B.T, found.G), (np.transpose(A), B, G)))  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-15)


@pytest.mark.parametrize(
    ("factors", "products"),
    [((1, 0, -1, 1), 0), ((-1, 0, 0, -1), 0), ((2.5, 1, -2.5, 2.5), 1), ((-0.5, -4, 0, -0.5), 2), ((0, 0, 0, 3), 1)],
)
def test_a_combination_takes_a_product_for_each_size_of_factor(factors, products):
    parts = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    combine = partial(winograd._combination, np.array(factors, float))
    np.testing.assert_allclose(combine(parts), np.dot(factors, parts), rtol=1e-5)
    assert str(jax.make_jaxpr(combine)(list(parts))).count("= mul") == products


@EVERY_KERNEL
@pytest.mark.parametrize("images", [(2, 8, 12), (2, 7, 11), (1, 9, 13), (2, 1, 1)], ids=str)
def test_every_kernel_equals_the_plain_sum(images, sides):
    """The last tiles reach beyond the map where it does not come out even."""
    with jax.enable_x64(True):
        for ours, xlas in zip(*both_ways(*arrays(images, (3, 5), np.float64, sides), around(sides)), strict=True):
            np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-11 * max(1, abs(xlas).max()))


@pytest.mark.parametrize(
    ("sides", "padding"),
    [
        ((3, 3), ((0, 0), (0, 0))),
        ((3, 3), ((0, 2), (2, 1))),
        ((3, 3), ((3, 0), (0, 4))),
        ((3, 3), ((-1, 2), (0, -1))),
        ((1, 7), ((2, 0), (0, 8))),
        ((7, 1), ((0, 0), (0, 0))),
    ],
    ids=str,
)
def test_any_padding_equals_the_plain_sum(sides, padding):
    with jax.enable_x64(True):
        for ours, xlas in zip(*both_ways(*arrays((2, 8, 6), (3, 5), np.float64, sides), padding), strict=True):
            np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-11 * max(1, abs(xlas).max()))


@EVERY_KERNEL
def test_float32_is_near_to_float64(sides):
    """Off by some 8e-7 of the map, with kernels of seven by 2.5e-6; the plain sum by 4e-7, TensorFloat-32 by 5e-4."""
    x, kernel = arrays((4, 16, 17), (128, 128), sides=sides)
    found = with_gradients(partial(winograd.winograd, padding=around(sides)), x, kernel)
    with jax.enable_x64(True):
        right = with_gradients(partial(plain, padding=around(sides)), x.astype(np.float64), kernel.astype(np.float64))
    for ours, exact in zip(found, right, strict=True):
        off = np.sqrt(np.mean((ours - exact) ** 2) / np.mean(exact**2))
        assert off < (1.5e-6 if max(sides) == 3 else 5e-6)


@EVERY_KERNEL
def test_it_is_mapped_over_images_and_kernels_as_the_plain_sum_is(sides):
    x, kernel = arrays((3, 8, 6), (4, 5), sides=sides)
    many, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, -kernel])

    def gradients(way):
        return jax.vmap(jax.grad(lambda x, k: (way(x, k, around(sides)) ** 2).sum(), (0, 1)))(many, kernels)

    for ours, xlas in zip(gradients(winograd.winograd), gradients(plain), strict=True):
        np.testing.assert_allclose(ours, xlas, atol=1e-5 * abs(xlas).max())


def traced(images=(2, 16, 16), channels=(64, 64), strides=(1, 1), dtype=jnp.float32, sides=(3, 3), groups=1):
    x, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in (
        (*images, channels[0] * groups), (*sides, *channels)))  # fmt: skip
    run = partial(convolution.convolve, dimension_numbers=NHWC, feature_group_count=groups)
    return str(jax.make_jaxpr(lambda x, k: run(x, k, strides, around(sides)))(x, kernel))


@pytest.mark.parametrize(
    "other",
    [
        {"images": (1, 16, 16)},
        {"images": (2, 16, 12)},
        {"channels": (63, 64)},
        {"channels": (64, 63)},
        {"strides": (2, 2)},
        {"dtype": jnp.bfloat16},
        {"sides": (5, 5)},
        {"sides": (7, 7)},
        {"sides": (1, 5)},
        {"groups": 2},
    ],
    ids=str,
)
def test_it_is_taken_where_it_pays(other):
    """From 64 tiles and 64 channels on."""
    assert winograd.OUTPUT in traced() and winograd.OUTPUT in traced(images=(4, 15, 8))
    assert winograd.OUTPUT not in traced(**other)


@EVERY_KERNEL
def test_it_is_taken_for_every_kernel_from_64_tiles_on(sides):
    down, right = (filtering.outputs for filtering in winograd._FILTERINGS[sides])
    assert winograd.OUTPUT in traced(images=(1, 8 * down, 8 * right), sides=sides)
    assert winograd.OUTPUT not in traced(images=(1, 8 * down, 7 * right), sides=sides)


def test_only_a_cpu_takes_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert winograd.OUTPUT not in traced()


def test_a_program_for_any_number_of_images_has_the_plain_sum():
    """Max-pooling too must not ask how many there are."""
    kernel = jnp.asarray(arrays((1, 1, 1), (64, 64))[1])

    def run(x):
        return layers.max_pool(convolution.convolve(x, kernel, (1, 1), AROUND, dimension_numbers=NHWC))

    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 32, 32, 64), jnp.float32)
    exported = jax.export.export(jax.jit(run))(images)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 64))
    assert "convolution" in exported.mlir_module() and winograd.OUTPUT in str(jax.make_jaxpr(run)(x))
    np.testing.assert_allclose(exported.call(x), run(x), atol=1e-3)


def block_and_images():
    block, images = BasicBlock(64), jax.random.normal(jax.random.key(0), (8, 8, 8, 64))
    return block, block.init(jax.random.key(1), images, True), images


def test_of_its_products_none_is_kept_where_the_rest_is_computed_anew():
    block, variables, images = block_and_images()

    def loss(params, images):
        return block.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])[0].sum()

    anew = jax.checkpoint(loss, policy=is_costly)
    kept = [a for a, why in saved_residuals(anew, variables["params"], images) if "argument" not in why]
    maps = [a for a in kept if a.size >= images.size / 8]  # one place's product is an eighth of a map
    assert winograd.OUTPUT in str(jax.make_jaxpr(loss)(variables["params"], images))
    assert [a.shape for a in maps] == [images.shape] * 2  # what the two convolutions put out
    for ours, plainly in zip(*(jax.tree.leaves(jax.grad(f)(variables["params"], images)) for f in (anew, loss)),
                             strict=True):  # fmt: skip
        np.testing.assert_allclose(ours, plainly, rtol=1e-4, atol=1e-4)


def on_every_device():
    """Prints how far the step of a block whose images are spread is from that of one device."""
    block, variables, images = block_and_images()

    def loss(params, images):
        y = block.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])[0]
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).mean()

    assert winograd.OUTPUT in str(jax.make_jaxpr(loss)(variables["params"], images))
    spread = jax.device_put(images, NamedSharding(Mesh(jax.devices(), "batch"), PartitionSpec("batch")))
    found, expected = (
        jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)) for x in (spread, images)
    )
    print(jax.device_count(), max(float(abs(np.asarray(a) - b).max()) for a, b in zip(found, expected, strict=True)))


@pytest.mark.slow
def test_images_that_are_spread_over_devices_give_the_same():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", "from tests.models import test_winograd; test_winograd.on_every_device()"]
    said = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    devices, off = said.split()
    assert int(devices) == 4 and float(off) < 1e-5
