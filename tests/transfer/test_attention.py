"""SAM and CAM against NumPy, their properties, and their sizes against the paper's Table 6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models import zoo
from afa_jax.transfer.attention import ChannelAttention, SpatialAttention


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def features():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 6)), jnp.float32)


def test_spatial_attention_equals_numpy(features):
    module = SpatialAttention()
    params = module.init(jax.random.key(1), features)["params"]
    x = np.asarray(features, np.float64).mean(-1).reshape(3, 20)
    hidden = np.maximum(x @ np.asarray(params["Dense_0"]["kernel"]), 0)
    expected = softmax(hidden @ np.asarray(params["Dense_1"]["kernel"]) + np.asarray(params["Dense_1"]["bias"]))
    np.testing.assert_allclose(module.apply({"params": params}, features), expected, rtol=1e-5)


def test_channel_attention_equals_numpy(features):
    module = ChannelAttention()
    params = module.init(jax.random.key(1), features)["params"]
    params = {**params, "bias": jnp.arange(6, dtype=jnp.float32) / 6}
    x = np.asarray(features, np.float64).reshape(3, 20, 6).transpose(0, 2, 1)
    hidden = np.maximum(x @ np.asarray(params["Dense_0"]["kernel"]), 0)
    expected = softmax((hidden @ np.asarray(params["Dense_1"]["kernel"]))[..., 0] + np.arange(6) / 6)
    np.testing.assert_allclose(module.apply({"params": params}, features), expected, rtol=1e-5)


@pytest.mark.parametrize("module", [SpatialAttention(), ChannelAttention()])
def test_rows_are_positive_and_sum_to_one_even_in_bfloat16(module, features):
    features = (100 * features).astype(jnp.bfloat16)
    attention = module.apply(module.init(jax.random.key(1), features), features)
    assert attention.dtype == jnp.float32
    assert (attention >= 0).all()
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-6)


def test_channel_attention_follows_a_permutation_of_the_channels(features):
    module = ChannelAttention()
    params = module.init(jax.random.key(1), features)  # its channel biases are zero, so channels are alike
    order = np.array([3, 0, 5, 1, 4, 2])
    plain, permuted = module.apply(params, features), module.apply(params, features[..., order])
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-5)


def test_spatial_attention_ignores_the_order_of_the_channels(features):
    module = SpatialAttention()
    params = module.init(jax.random.key(1), features)
    np.testing.assert_allclose(module.apply(params, features[..., ::-1]), module.apply(params, features), rtol=1e-5)


def test_linear_layers_start_as_in_pytorch(features):
    large = jnp.zeros((1, 30, 30, 8))
    params = SpatialAttention().init(jax.random.key(0), large)["params"]
    for layer, fan_in in (("Dense_0", 900), ("Dense_1", 30)):
        for weights in params[layer].values():
            bound = fan_in**-0.5
            assert abs(weights).max() <= bound
            assert weights.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert "bias" not in params["Dense_0"]
    params = ChannelAttention().init(jax.random.key(0), large)["params"]
    assert "bias" not in params["Dense_0"] and "bias" not in params["Dense_1"]
    assert (params["bias"] == 0).all() and params["bias"].shape == (8,)


@pytest.mark.parametrize(("name", "spatial", "channel"), [
    ("resnet50", 405_475, 204_600),
    ("resnet101", 405_475, 204_600),
    ("inception_v3", 819_041, 409_638),
    ("mobilenet_v2", 56_791, 28_358),
])  # fmt: skip
def test_parameter_counts_equal_table_6(name, spatial, channel):
    network = zoo.NETWORKS[name]
    shapes = zoo.layer_shapes(zoo.create(name, 10), network.image_size)
    totals = {}
    for module in (SpatialAttention(), ChannelAttention()):
        made = [
            jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shapes[tap], jnp.float32))
            for tap in network.taps[4]
        ]
        totals[type(module)] = sum(leaf.size for leaf in jax.tree.leaves(made))
    assert totals == {SpatialAttention: spatial, ChannelAttention: channel}
