"""Convolutions in their form for a CPU against XLA's own, with the gradients, and both forms in whole networks."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from afa_jax import compilation
from afa_jax.models import convolution, layers
from afa_jax.models.networks.mobilenet import InvertedResidual

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(image, kernel, dtype: Any = np.float64):
    rng = np.random.default_rng(0)
    return rng.normal(size=image).astype(dtype), rng.normal(size=kernel).astype(dtype)


def with_gradients(function, *arguments):
    """The value, and the gradients of a sum of it in which no number counts as another."""

    @jax.jit
    def run(*arguments):
        value, transpose = jax.vjp(function, *arguments)
        return value, *transpose(jnp.sin(jnp.arange(value.size)).astype(value.dtype).reshape(value.shape))

    return [np.asarray(array) for array in run(*arguments)]


def native(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=groups)


@pytest.mark.parametrize(
    ("image", "sides", "strides", "padding"),
    [
        ((2, 6, 5), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((2, 6, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 7, 8), (5, 3), (2, 1), ((2, 2), (0, 0))),
        ((3, 7, 7), (7, 7), (1, 1), ((0, 0), (0, 0))),
        ((1, 5, 6), (3, 2), (3, 2), ((0, 2), (1, 0))),
        ((1, 1, 1), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((2, 11, 4), (3, 3), (1, 1), ((1, 1), (1, 1))),  # of two parts with six rows, and one row too many
        ((2, 25, 6), (3, 3), (2, 2), ((1, 1), (0, 1))),
        ((1, 14, 4), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ],
)
def test_depthwise_equals_xlas_grouped_convolution(image, sides, strides, padding):
    with jax.enable_x64(True):
        x, kernel = arrays((*image, 4), (*sides, 1, 4))
        found = with_gradients(lambda x, k: convolution.depthwise(x, k, strides, padding), x, kernel)
        expected = with_gradients(lambda x, k: native(x, k, strides, padding, 4), x, kernel)
    for ours, xlas in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize(("sides", "stride"), [((6, 5), 1), ((6, 5), 2), ((7, 7), 3)])
def test_a_1x1_convolution_equals_xlas(sides, stride, features):
    strides, padding = (stride, stride), ((0, 0), (0, 0))
    with jax.enable_x64(True):
        x, kernel = arrays((2, *sides, 3), (1, 1, 3, features))
        found = with_gradients(lambda x, k: convolution.convolve(x, k, strides, padding), x, kernel)
        expected = with_gradients(lambda x, k: native(x, k, strides, padding, 1), x, kernel)
    for ours, xlas in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "features"), [(64, 16), (16, 64)])
def test_of_a_1x1_convolutions_gradients_no_product_turns_the_wider_side_or_the_kernel(channels, features):
    x, kernel = arrays((2, 8, 8, channels), (1, 1, channels, features), np.float32)

    def run(x, kernel, gradient):
        return jax.vjp(lambda x, k: convolution.convolve(x, k, (1, 1), ((0, 0), (0, 0))), x, kernel)[1](gradient)

    gradient = np.ones((2, 8, 8, features), np.float32)
    program = compilation.jit(run).lower(x, kernel, gradient).compile().as_text()
    over = r"lhs_contracting_dims=\{\d\}, rhs_contracting_dims=\{(\d)\}"
    products = re.findall(r"= f32\[(\d+),(\d+)\]\{(\d),\d\S* dot\(.*" + over, program or "")
    # In memory: a product with its axes the other way round is that of the sides the other way round.
    results = {(int(a), int(b))[:: 1 if fastest == "1" else -1] for a, b, fastest, _ in products}
    assert results == {(128, channels), (16, 64)} and {right for *_, right in products} == {"0"}


@pytest.mark.parametrize(
    ("image", "sides", "stride", "padding"),
    [
        ((9, 8), (7, 7), 2, ((3, 3), (3, 3))),  # ResNet's first
        ((9, 8), (3, 3), 2, ((0, 0), (0, 0))),  # Inception's
        ((8, 9), (3, 3), 2, ((1, 1), (1, 1))),  # MobileNetV2's
        ((11, 7), (4, 1), 3, ((2, 0), (1, 5))),
        ((10, 10), (1, 1), 2, ((0, 0), (0, 0))),
    ],
)
def test_an_images_strided_convolution_equals_xlas_on_a_gpu(image, sides, stride, padding, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    strides = stride, stride
    with jax.enable_x64(True):
        x, kernel = arrays((2, *image, 3), (*sides, 3, 5))
        found = with_gradients(
            lambda x, k: convolution.convolve(x, k, strides, padding, dimension_numbers=NHWC), x, kernel
        )
        expected = with_gradients(lambda x, k: native(x, k, strides, padding, 1), x, kernel)
    for ours, xlas in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (5, 3, 0)])
def test_the_mean_and_its_gradient_equal_xlas(size, stride, padding, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 11, 11, 3))
    both = []
    for on_cpu in (True, False):
        monkeypatch.setattr(layers, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        both.append(jax.value_and_grad(lambda x: (layers.avg_pool(x, size, stride, padding) ** 3).sum())(x))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)


def test_the_mean_in_bfloat16_is_rounded_but_not_shifted():
    """A ninth in bfloat16 is too large by a five-hundredth."""
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 64), jnp.bfloat16, 1, 2)
    mean, right = (layers.avg_pool(x.astype(dtype), 3, 1, 0) for dtype in (jnp.bfloat16, jnp.float32))
    assert mean.dtype == jnp.bfloat16
    assert abs((mean / right).mean() - 1) < 5e-4


def test_depthwise_sums_bfloat16_in_float32():
    x, kernel = arrays((2, 9, 9, 4), (3, 3, 1, 4), jnp.bfloat16)
    run = partial(convolution.depthwise, strides=(1, 1), padding=((1, 1), (1, 1)))
    found = with_gradients(run, x, kernel)
    expected = with_gradients(run, x.astype(np.float32), kernel.astype(np.float32))
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), right, rtol=0, atol=2**-7 * abs(right).max())


def traced(x, kernel, groups, **options):
    strides, padding = (1, 1), [(1, 1), (1, 1)]
    options = {"dimension_numbers": NHWC, "feature_group_count": groups, **options}
    return str(jax.make_jaxpr(lambda x, k: convolution.convolve(x, k, strides, padding, **options))(x, kernel))


def test_only_a_cpu_has_sums_and_products_in_place_of_convolutions(monkeypatch):
    x, kernel = arrays((1, 5, 5, 4), (3, 3, 1, 4), np.float32)
    assert "conv_general_dilated" not in traced(x, kernel, 4)
    assert "conv_general_dilated" in traced(x, kernel, 4, rhs_dilation=(2, 2))
    assert "conv_general_dilated" in traced(x, np.ones((3, 3, 1, 8), np.float32), 4)
    assert "conv_general_dilated" in traced(x, np.ones((1, 1, 4, 8), np.float32), 1)  # which is padded
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in traced(x, kernel, 4)


def test_only_few_channels_are_read_in_blocks_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    padding = ((1, 1), (1, 1))
    for channels, stride, blocks in ((3, 2, True), (3, 1, False), (64, 2, False)):
        x, kernel = arrays((1, 8, 8, channels), (3, 3, channels, 4), np.float32)
        run = partial(convolution.convolve, strides=(stride, stride), padding=padding, dimension_numbers=NHWC)
        assert ("transpose" in str(jax.make_jaxpr(run)(x, kernel))) is blocks


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_the_same_in_both_forms(stride, monkeypatch):
    """In float64: what it gives, its new statistics, and the gradient of every parameter."""
    with jax.enable_x64(True):
        block = InvertedResidual(2, 4, stride, jnp.float64)
        images, _ = arrays((3, 6, 6, 4), (1,))
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), block.init(jax.random.key(0), images, True))

        def run(params, images):
            output, stats = block.apply({**variables, "params": params}, images, True, mutable=["batch_stats"])
            return (jnp.sin(jnp.arange(output.size)).reshape(output.shape) * output).sum(), (output, stats)

        results = []
        for backend in ("cpu", "gpu"):
            monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
            # A new function each time: what has been traced is kept by function.
            program = jax.jit(lambda *arguments: jax.value_and_grad(run, (0, 1), has_aux=True)(*arguments))
            results.append(jax.tree.map(np.asarray, program(variables["params"], images)))
    ours, xlas = map(jax.tree.leaves, results)
    for a, b in zip(ours, xlas, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, abs(b).max()))
