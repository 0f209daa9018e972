"""Max-pooling against XLA's own, with the gradient, and where it goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models.layers import max_pool
from afa_jax.models.pooling import largest_of_nine


def xlas(x, padding):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((padding, padding), (padding, padding)))


def with_gradient(pool, x, padding):
    """The maximum, and the gradient of a sum of it in which no number counts as another."""
    y, transpose = jax.vjp(lambda x: pool(x, padding), x)
    return y, transpose(jnp.sin(1 + jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))[0]


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("sides", [(9, 8), (8, 9), (3, 4), (5, 12)])
@pytest.mark.parametrize("values", [3, 1000])
def test_it_equals_xlas_where_numbers_are_equal_too(sides, padding, values):
    x = np.random.default_rng(0).integers(-values, values, (2, *sides, 3)).astype(np.float32)
    for found, expected in zip(*(with_gradient(pool, x, padding) for pool in (largest_of_nine, xlas)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_of_equal_values_the_first_has_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, padding=0).sum())(jnp.zeros((1, 5, 5, 1)))
    np.testing.assert_array_equal(np.argwhere(gradient)[:, 1:3], [(0, 0), (0, 2), (2, 0), (2, 2)])
    at_the_edge = jax.grad(lambda x: max_pool(x).sum())(jnp.full((1, 3, 3, 1), -jnp.inf))
    assert at_the_edge.sum() < 4  # what lies around has the rest, as in XLA's own and unlike a value that is found


def test_a_gradient_of_several_windows_is_summed_in_float32():
    """One value is the largest of four windows: added to 1, which comes first, a 2⁻⁸ is lost if sums are rounded."""
    x = jnp.zeros((1, 5, 5, 1), jnp.bfloat16).at[0, 2, 2, 0].set(1)
    gradient = jnp.array([2**-8, 2**-8, 2**-8, 1], jnp.bfloat16).reshape(1, 2, 2, 1)
    _, transpose = jax.vjp(lambda x: max_pool(x, padding=0), x)
    found = transpose(gradient)[0][0, 2, 2, 0]
    assert found.dtype == jnp.bfloat16
    assert found == jnp.bfloat16(1 + 3 * 2**-8) > 1


@pytest.mark.parametrize("place", [(1, 1), (2, 3), (4, 4)])
def test_the_maximum_of_nan_is_nan(place):
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, *place] = np.nan
    found = np.isnan(max_pool(jnp.asarray(x)))[0, :, :, 0]
    windows = [[np.isnan(x[0, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]).any() for j in range(3)]
               for i in range(3)]  # fmt: skip
    np.testing.assert_array_equal(found, windows)


def test_only_a_cpu_has_it(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 8, 9, 3))

    def takes_xlas():
        return "reduce_window" in str(jax.make_jaxpr(lambda x: max_pool(x))(x))

    assert not takes_xlas()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert takes_xlas()
    np.testing.assert_array_equal(max_pool(x), largest_of_nine(x, 1))
