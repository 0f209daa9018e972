"""A network that is read by angle: what it says, and that all else is as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax import trees
from afa_jax.models import zoo
from afa_jax.models.cosine import CosineHead

NETWORK = "resnet10_small"
TAPS = (*zoo.NETWORKS[NETWORK].taps[4], "fc:input")


def both(dtype=jnp.float32):
    plain = zoo.create(NETWORK, 5, dtype)
    return plain, CosineHead(plain, "fc", 16.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_scaled_cosines_and_features_stay(dtype):
    plain, cosine = both(dtype)
    variables = zoo.initialise(cosine, jax.random.key(1), 16)
    jax.tree.map(np.testing.assert_array_equal, variables, zoo.initialise(plain, jax.random.key(1), 16))
    variables = trees.put(variables, "params.fc.bias", jnp.full(5, 100.0))  # has no part in it
    images = jax.random.normal(jax.random.key(2), (3, 16, 16, 3))
    found, other = (zoo.forward(module, variables, images, taps=TAPS) for module in (cosine, plain))
    jax.tree.map(np.testing.assert_array_equal, found.features, other.features)
    embedding = np.asarray(found.features["fc:input"], np.float64)
    kernel = np.asarray(variables["params"]["fc"]["kernel"], np.float64)
    expected = (
        16 * (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)) @ (kernel / np.linalg.norm(kernel, axis=0))
    )
    assert found.logits.dtype == jnp.float32 and found.logits.shape == (3, 5)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_renewed_as_in_the_plain_network():
    plain, cosine = both()
    variables = zoo.initialise(plain, jax.random.key(1), 16)
    images = jax.random.normal(jax.random.key(2), (3, 16, 16, 3))
    found, other = (zoo.forward(module, variables, images, train=True) for module in (cosine, plain))
    jax.tree.map(np.testing.assert_array_equal, found.batch_stats, other.batch_stats)


def test_in_float32():
    plain, cosine = both(jnp.bfloat16)
    assert zoo.in_float32(cosine) == CosineHead(zoo.in_float32(plain), "fc", 16.0)
    assert zoo.in_float32(plain).dtype == jnp.float32
