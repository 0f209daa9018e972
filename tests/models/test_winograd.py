"""3×3 convolutions by Winograd's way against XLA's own, with the gradients, and when they are taken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from afa_jax.models import convolution, winograd

NHWC = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC)


def with_gradients(function, *arguments):
    """The value, and the gradients of a sum of it in which no number counts as another."""

    @jax.jit
    def run(*arguments):
        value, transpose = jax.vjp(function, *arguments)
        return value, *transpose(jnp.sin(jnp.arange(value.size)).astype(value.dtype).reshape(value.shape))

    return [np.asarray(array) for array in run(*arguments)]


def arrays(images, channels, dtype):
    rng = np.random.default_rng(0)
    return rng.normal(size=(*images, channels[0])).astype(dtype), rng.normal(size=(3, 3, *channels)).astype(dtype)


@pytest.mark.parametrize("channels", [(3, 5), (96, 97)], ids=["the kernel's gradient as it was", "and by products"])
@pytest.mark.parametrize(
    ("images", "padding"),
    [
        ((2, 8, 6), ((1, 1), (1, 1))),
        ((2, 7, 5), ((1, 1), (1, 1))),  # the last tiles reach beyond the map
        ((1, 6, 7), ((0, 0), (0, 0))),
        ((1, 5, 6), ((0, 2), (2, 1))),
        ((2, 1, 1), ((1, 1), (1, 1))),
    ],
)
def test_it_equals_the_plain_sum(images, channels, padding):
    with jax.enable_x64(True):
        x, kernel = arrays(images, channels, np.float64)
        found, expected = (
            with_gradients(partial(way, padding=padding), x, kernel)
            for way in (lambda x, kernel, padding: winograd.winograd(x, kernel, padding), plain)
        )
    for ours, xlas in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-12 * max(1, abs(xlas).max()))


def test_in_float32_it_is_as_near_to_float64_as_the_plain_sum():
    x, kernel = arrays((4, 14, 14), (128, 128), np.float32)
    padding = ((1, 1), (1, 1))
    ours, xlas = (with_gradients(partial(way), x, kernel) for way in (
        lambda x, k: winograd.winograd(x, k, padding), lambda x, k: plain(x, k, padding)))  # fmt: skip
    with jax.enable_x64(True):
        right = with_gradients(lambda x, k: plain(x, k, padding), x.astype(np.float64), kernel.astype(np.float64))
    for a, b, exact in zip(ours, xlas, right, strict=True):
        ours_off, xlas_off = (np.sqrt(np.mean((found - exact) ** 2)) for found in (a, b))
        assert ours_off < 3 * xlas_off


def test_it_is_mapped_over_an_axis_as_the_plain_sum_is():
    """DELTA's weights run a network for many filters at once."""
    x, kernel = arrays((3, 8, 6), (4, 5), np.float32)
    many = jnp.stack([x, 2 * x])
    found, expected = (jax.vmap(lambda x, way=way: way(x, kernel, ((1, 1), (1, 1))))(many)
                       for way in (winograd.winograd, plain))  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-4)


def traced(images, channels, strides=(1, 1), dtype=jnp.float32, side=3, groups=1):
    x, kernel = jnp.zeros((*images, channels[0] * groups), dtype), jnp.zeros((side, side, *channels), dtype)
    padding = [(side // 2, side // 2)] * 2
    run = partial(convolution.convolve, dimension_numbers=NHWC, feature_group_count=groups)
    return str(jax.make_jaxpr(lambda x, k: run(x, k, strides, padding))(x, kernel))


def test_it_is_taken_where_it_pays(monkeypatch):
    large = (8, 14, 14), (128, 128)
    assert "winograd" in traced(*large)
    for other in (
        {"images": (1, 14, 14)},
        {"channels": (32, 128)},
        {"channels": (128, 32)},
        {"strides": (2, 2)},
        {"dtype": jnp.bfloat16},
        {"side": 5},
        {"groups": 2, "channels": (64, 128)},
    ):
        assert "winograd" not in traced(**{"images": large[0], "channels": large[1], **other}), other
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "winograd" not in traced(*large)
