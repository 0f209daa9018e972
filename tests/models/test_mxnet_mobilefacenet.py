"""InsightFace's MobileFaceNet for MXNet, whose layers are not quite those here: it gives the same all the same."""

import jax
import numpy as np
import pytest

from afa_jax.errors import UserError
from afa_jax.models import weights
from tests.models import mxnet_writer


def mxnet_mobile_shapes():
    """The arrays of InsightFace's MobileFaceNet in MXNet, by the description of the network."""
    shapes = {}

    def layer(name, width, inputs, kernel, linear=False):
        shapes[f"arg:{name}_conv2d_weight"] = (width, inputs, kernel, kernel)
        shapes.update({f"arg:{name}_batchnorm_{word}": (width,) for word in ("gamma", "beta")})
        shapes.update({f"aux:{name}_batchnorm_moving_{word}": (width,) for word in ("mean", "var")})
        shapes.update({} if linear else {f"arg:{name}_relu_gamma": (width,)})

    def bottleneck(name, inputs, hidden, width):
        layer(f"{name}_conv_sep", hidden, inputs, 1)
        layer(f"{name}_conv_dw", hidden, 1, 3)
        layer(f"{name}_conv_proj", width, hidden, 1, linear=True)

    layer("conv_1", 64, 3, 3)
    layer("conv_2_dw", 64, 1, 3)
    for i, (inputs, hidden, width, blocks) in enumerate([(64, 128, 64, 4), (64, 256, 128, 6), (128, 512, 128, 2)]):
        bottleneck(f"dconv_{i + 2}{i + 3}", inputs, hidden, width)
        for block in range(blocks):
            bottleneck(f"res_{i + 3}_block{block}", width, 2 * width, width)
    layer("conv_6sep", 512, 128, 1)
    layer("conv_6dw7_7", 512, 1, 7, linear=True)
    shapes.update({"arg:pre_fc1_weight": (128, 512), "arg:pre_fc1_bias": (128,)})
    shapes.update({f"arg:fc1_{word}": (128,) for word in ("gamma", "beta")})
    return shapes | {f"aux:fc1_moving_{word}": (128,) for word in ("mean", "var")}


def test_mobilefacenet_of_mxnet_gives_what_it_gives_there(tmp_path):
    """Its BatchNorms add 1e-3 to a variance, the last 2e-5; that one's gamma is fixed at one, and takes a bias in."""
    random = np.random.default_rng(0)
    state = {
        key: random.uniform(1e-4, 2, shape) if key.endswith("var") else random.normal(size=shape)
        for key, shape in mxnet_mobile_shapes().items()
    }
    state = {key: value.astype(np.float32) for key, value in state.items()}
    mxnet_writer.write(tmp_path / "model-0000.params", state)
    loaded = weights.load("mobilefacenet", tmp_path / "model-0000.params")
    params, stats = loaded["params"], loaded["batch_stats"]

    def norm(params, stats, x):
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    def theirs(name, x, epsilon, gamma):
        mean, var = (state[f"aux:{name}_moving_{word}"].astype(np.float64) for word in ("mean", "var"))
        return (x - mean) / np.sqrt(var + epsilon) * gamma + state[f"arg:{name}_beta"]

    name, x = "res_4_block5_conv_dw_batchnorm", random.normal(size=(9, 256))
    inner = (tree["blocks"]["11"]["conv"]["4"] for tree in (params, stats))
    np.testing.assert_allclose(norm(*inner, x), theirs(name, x, 1e-3, state[f"arg:{name}_gamma"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        params["blocks"]["11"]["conv"]["5"]["slope"], state["arg:res_4_block5_conv_dw_relu_gamma"]
    )
    kernel = state["arg:dconv_34_conv_proj_conv2d_weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["blocks"]["5"]["conv"]["6"]["kernel"], kernel)
    x = random.normal(size=(9, 512))
    last = norm(params["linear1"]["bn"], stats["linear1"]["bn"], x @ params["linear1"]["conv"]["kernel"][0, 0])
    expected = theirs("fc1", x @ state["arg:pre_fc1_weight"].T + state["arg:pre_fc1_bias"], 2e-5, 1)
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-4)
    # Nothing is lost but the bias, which is in the mean; the last gamma is one.
    np.testing.assert_array_equal(params["linear1"]["bn"]["scale"], np.ones(128))
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded)) == sum(array.size for array in state.values()) - 128


def test_a_mobilefacenet_of_mxnet_that_lacks_a_layer(tmp_path):
    state = {key: np.ones(shape, np.float32) for key, shape in mxnet_mobile_shapes().items() if "conv_6sep" not in key}
    mxnet_writer.write(tmp_path / "model-0000.params", state)
    with pytest.raises(UserError, match=r"6 missing \(conv_6sep_\w+"):
        weights.load("mobilefacenet", tmp_path / "model-0000.params")
