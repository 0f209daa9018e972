"""The public door to the networks: names, taps at any layer, train and eval mode."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.models import zoo
from tests import tiny


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (4, tiny.SIZE, tiny.SIZE, 3))


def test_features_are_what_the_layers_put_out(images):
    variables = tiny.variables()
    outputs = zoo.forward(tiny.TinyNet(3), variables, images, taps=("conv2", "conv1"))
    kernel = variables["params"]["conv1"]["kernel"]
    expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(outputs.features["conv1"], expected, rtol=1e-5)
    pooled = jnp.maximum(outputs.features["conv2"], 0).mean((1, 2))
    head = variables["params"]["fc"]
    np.testing.assert_allclose(outputs.logits, pooled @ head["kernel"] + head["bias"][None], rtol=1e-5)


def test_any_layer_can_be_tapped_inner_and_outer_at_once():
    module = zoo.create("resnet10_small", 3)
    variables = zoo.initialise(module, jax.random.key(0), 16)
    images = jnp.ones((2, 16, 16, 3))
    known = zoo.layer_shapes(module, 16)
    taps = tuple(known)
    assert {"conv1", "layer2", "layer2.0", "layer2.0.downsample.1", "fc"} <= set(taps)
    outputs = zoo.forward(module, variables, images, taps=taps)
    assert {tap: (1, *f.shape[1:]) for tap, f in outputs.features.items()} == known
    np.testing.assert_array_equal(outputs.features["fc"], outputs.logits)
    np.testing.assert_array_equal(outputs.features["layer4"], outputs.features["layer4.0"])


def test_taps_do_not_change_the_outputs(images):
    plain = zoo.forward(tiny.TinyNet(3), tiny.variables(), images)
    tapped = zoo.forward(tiny.TinyNet(3), tiny.variables(), images, taps=("conv1",))
    assert plain.features == {}
    np.testing.assert_array_equal(plain.logits, tapped.logits)


def test_train_mode_moves_the_statistics_by_a_tenth_and_eval_mode_does_not(images):
    variables = tiny.variables()
    outputs = zoo.forward(tiny.TinyNet(3), variables, images, taps=("conv1",), train=True)
    mean = outputs.features["conv1"].mean((0, 1, 2))
    before = variables["batch_stats"]["bn1"]["mean"]
    np.testing.assert_allclose(outputs.batch_stats["bn1"]["mean"], 0.9 * before + 0.1 * mean, rtol=1e-4, atol=1e-6)
    still = zoo.forward(tiny.TinyNet(3), variables, images).batch_stats
    jax.tree.map(np.testing.assert_array_equal, still, variables["batch_stats"])


def test_what_is_behind_the_last_tap_is_not_computed():
    """The teacher's forward pass: with a tap in the first stage, a compiled step pays for no later stage."""
    module = zoo.create("resnet10_small", 10)
    variables = zoo.initialise(module, jax.random.key(0), 32)
    images = jnp.ones((8, 32, 32, 3))

    def flops(take):
        compiled = jax.jit(lambda v, x: take(zoo.forward(module, v, x, taps=("layer1.0.conv2",)))).lower(
            variables, images
        )
        return compiled.compile().cost_analysis()["flops"]

    assert flops(lambda outputs: outputs.features) < 0.5 * flops(lambda outputs: outputs)


def test_a_wrong_tap_names_the_near_ones(images):
    with pytest.raises(UserError, match=r"no layer 'conv3' to tap; did you mean conv[12], conv[12]"):
        zoo.forward(tiny.TinyNet(3), tiny.variables(), images, taps=("conv3",))


def test_a_layer_that_runs_twice_is_refused(images):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            layer = nn.Dense(3, name="shared")
            return layer(layer(x)).mean((1, 2))

    module = Twice()
    with pytest.raises(UserError, match="'shared' runs 2 times"):
        zoo.forward(module, module.init(jax.random.key(0), images), images, taps=("shared",))


def test_a_network_without_batch_norm_has_no_statistics(images):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3, name="fc")(x.mean((1, 2)))

    module = Plain()
    assert zoo.forward(module, module.init(jax.random.key(0), images), images, train=True).batch_stats == {}


def test_a_wrong_name_names_the_near_ones():
    with pytest.raises(UserError, match="no network 'resnet55'; did you mean resnet50"):
        zoo.create("resnet55", 10)
