"""The residual networks: layer names, the start, and the arithmetic of a block against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afa_jax.models import zoo
from afa_jax.models.networks.resnet import BasicBlock


def shapes(name, classes=1000):
    module = zoo.create(name, classes)
    return jax.eval_shape(lambda key: zoo.initialise(module, key, 64), jax.random.key(0))


def test_layers_have_torchvisions_names():
    params = shapes("resnet50")["params"]
    assert set(params) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert set(params["layer3"]) == {str(i) for i in range(6)}
    assert set(params["layer3"]["0"]) == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample"}
    assert set(params["layer3"]["1"]) == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert set(params["layer3"]["0"]["downsample"]) == {"0", "1"}
    assert "downsample" in params["layer1"]["0"]  # 64 to 256 channels
    assert "downsample" not in shapes("resnet18")["params"]["layer1"]["0"]


def test_small_network_keeps_the_resolution_of_small_images():
    found = zoo.layer_shapes(zoo.create("resnet10_small", 10), 32)
    assert [found[f"layer{i}"][1:] for i in (1, 2, 3, 4)] == [(32, 32, 16), (16, 16, 32), (8, 8, 64), (4, 4, 128)]


def test_start_is_torchvisions():
    variables = zoo.initialise(zoo.create("resnet18", 1000), jax.random.key(0), 64)
    kernel = variables["params"]["layer4"]["1"]["conv2"]["kernel"]
    assert kernel.std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)  # He, fan out
    assert abs(kernel).max() > 3.5 * kernel.std()  # not cut off
    head = variables["params"]["fc"]
    for weights in head.values():
        assert abs(weights).max() <= 512**-0.5
        assert weights.std() == pytest.approx((512 * 3) ** -0.5, rel=0.05)


def correlate(x, kernel, stride):
    """A convolution as a sum over kernel places, zero-padded by half the kernel."""
    size = kernel.shape[0]
    pad = size // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = 0
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width]
            out = out + part @ kernel[i, j]
    return out


@pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 6), (2, 7)])
def test_basic_block_equals_numpy(stride, side):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, side, side, 4))
    block = BasicBlock(6, stride)
    template = block.init(jax.random.key(0), jnp.zeros(x.shape), False)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32), template)
    params, stats = (jax.tree.map(np.float64, variables[key]) for key in ("params", "batch_stats"))

    def norm(y, layer, name):
        p, s = layer[0][name], layer[1][name]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    here = (params, stats)
    y = np.maximum(norm(correlate(x, params["conv1"]["kernel"], stride), here, "bn1"), 0)
    y = norm(correlate(y, params["conv2"]["kernel"], 1), here, "bn2")
    below = (params["downsample"], stats["downsample"])
    shortcut = norm(correlate(x, params["downsample"]["0"]["kernel"], stride), below, "1")
    expected = np.maximum(y + shortcut, 0)
    # Where terms cancel, what is left has the rounding of the terms.
    atol = 1e-7 * expected.max()
    np.testing.assert_allclose(block.apply(variables, jnp.float32(x), False), expected, rtol=1e-4, atol=atol)


def test_bfloat16_activations_give_float32_logits_close_to_the_others():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    full, half = (zoo.create("resnet10_small", 10, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = zoo.initialise(full, jax.random.key(0), 32)
    exact = zoo.forward(full, variables, images)
    rough = zoo.forward(half, variables, images, taps=("layer4.0.conv2",))
    assert rough.logits.dtype == jnp.float32
    assert rough.features["layer4.0.conv2"].dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.logits, exact.logits, atol=0.05 * float(abs(exact.logits).max()))
