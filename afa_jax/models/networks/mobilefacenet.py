"""MobileFaceNet (Chen et al. 2018), with the layer names of the most common files for PyTorch (`blocks.4.conv.6`)."""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from afa_jax.models.faces import FACES, NORM_WORDS, SIDE, check_side, face_head
from afa_jax.models.layers import EPSILON, PReLU, batch_norm, conv
from afa_jax.models.network import Layout, Network, spread_taps

# (expansion, channels, blocks, stride of the first), Chen et al. (2018), Table 1.
_SETTINGS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class ConvBlock(nn.Module):
    """Convolution `conv`, BatchNorm `bn` and, if not `linear`, PReLU `prelu`."""

    width: int
    kernel: int = 1
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    linear: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups, "dtype": self.dtype}
        x = conv(self.width, self.kernel, name="conv", **options)(x)
        x = batch_norm(train, dtype=self.dtype, name="bn")(x)
        return x if self.linear else PReLU(name="prelu")(x)


class Inner(nn.Module):
    """A bottleneck's layers: expansion `0`, depthwise 3×3 `3`, linear projection `6`; BatchNorm and PReLU between."""

    expansion: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = x.shape[-1] * self.expansion
        x = conv(hidden, 1, dtype=self.dtype, name="0")(x)
        x = PReLU(name="2")(batch_norm(train, dtype=self.dtype, name="1")(x))
        x = conv(hidden, 3, stride=self.stride, groups=hidden, dtype=self.dtype, name="3")(x)
        x = PReLU(name="5")(batch_norm(train, dtype=self.dtype, name="4")(x))
        x = conv(self.width, 1, dtype=self.dtype, name="6")(x)
        return batch_norm(train, dtype=self.dtype, name="7")(x)


class Bottleneck(nn.Module):
    """An expanded depthwise block; its shortcut is there where shape and resolution stay."""

    expansion: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = Inner(self.expansion, self.width, self.stride, self.dtype, name="conv")(x, train)
        return x + y if x.shape == y.shape else y


class Blocks(nn.Module):
    """The bottlenecks `0` to `14`: `[B, 56, 56, 64]` to `[B, 7, 7, 128]`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        number = 0
        for expansion, width, blocks, stride in _SETTINGS:
            for i in range(blocks):
                block = Bottleneck(expansion, width, stride if i == 0 else 1, self.dtype, name=str(number))
                x, number = block(x, train), number + 1
        return x


class MobileFaceNet(nn.Module):
    """`[B, 112, 112, 3]` to float32 `[B, num_classes]`; the embedding has `outputs` numbers.

    Raises:
      UserError: images of another size, for which the global depthwise convolution is not made.
    """

    num_classes: int
    outputs: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        check_side("MobileFaceNet", x)
        x = ConvBlock(64, 3, 2, dtype=self.dtype, name="conv1")(x, train)
        x = ConvBlock(64, 3, groups=64, dtype=self.dtype, name="dw_conv1")(x, train)
        x = Blocks(self.dtype, name="blocks")(x, train)
        x = ConvBlock(512, dtype=self.dtype, name="conv2")(x, train)
        x = ConvBlock(512, 7, padding=0, groups=512, linear=True, dtype=self.dtype, name="linear7")(x, train)
        x = ConvBlock(self.outputs, linear=True, name="linear1")(x.astype(jnp.float32), train)
        return face_head(self.num_classes, self.outputs, name="head")(x[:, 0, 0])


def _build(num_classes: int, dtype: Any) -> MobileFaceNet:
    return MobileFaceNet(num_classes, dtype=dtype)


def _build_512(num_classes: int, dtype: Any) -> MobileFaceNet:
    return MobileFaceNet(num_classes, outputs=512, dtype=dtype)


_GROUPS = (
    "conv_23",
    *(f"conv_3.model.{i}" for i in range(4)),
    "conv_34",
    *(f"conv_4.model.{i}" for i in range(6)),
    "conv_45",
    *(f"conv_5.model.{i}" for i in range(2)),
)
_PARTS = (
    *("conv.conv", "conv.bn", "conv.prelu", "conv_dw.conv", "conv_dw.bn", "conv_dw.prelu"),
    *("project.conv", "project.bn"),
)
_OUTSIDE = {"dw_conv1": "conv2_dw", "conv2": "conv_6_sep", "linear7": "conv_6_dw"}


def _conv_23_key(key: str) -> str:
    """`blocks.1.conv.6.weight` to `conv_3.model.0.project.conv.weight`; blocks are grouped by width and resolution."""
    inside = re.fullmatch(r"blocks\.(\d+)\.conv\.(\d)\.(\w+)", key)
    if inside:
        block, part, word = inside.groups()
        return f"{_GROUPS[int(block)]}.{_PARTS[int(part)]}.{word}"
    if key == "linear1.conv.weight":
        return "linear.weight"
    first, _, rest = key.partition(".")
    return rest if first == "linear1" else f"{_OUTSIDE.get(first, first)}.{rest}"


_MXNET_OUTSIDE = {
    **{"conv1": "conv_1", "dw_conv1": "conv_2_dw", "conv2": "conv_6sep", "linear7": "conv_6dw7_7"},
    **{"conv": "conv2d", "bn": "batchnorm", "prelu": "relu"},
}
_MXNET_GROUPS = (
    "dconv_23",
    *(f"res_3_block{i}" for i in range(4)),
    "dconv_34",
    *(f"res_4_block{i}" for i in range(6)),
    "dconv_45",
    *(f"res_5_block{i}" for i in range(2)),
)
_MXNET_PARTS = (
    *("conv_sep_conv2d", "conv_sep_batchnorm", "conv_sep_relu", "conv_dw_conv2d", "conv_dw_batchnorm", "conv_dw_relu"),
    *("conv_proj_conv2d", "conv_proj_batchnorm"),
)


def _mxnet_key(key: str) -> str:
    """`blocks.1.conv.7.running_var` to `res_3_block0_conv_proj_batchnorm_moving_var`; a slope is a `gamma`."""
    inside = re.fullmatch(r"blocks\.(\d+)\.conv\.(\d)\.(\w+)", key)
    if inside:
        block, part, word = inside.groups()
        layer = f"{_MXNET_GROUPS[int(block)]}_{_MXNET_PARTS[int(part)]}"
    elif key == "linear1.conv.weight":
        return "pre_fc1_weight"
    else:
        outer, inner, word = key.split(".")
        layer = "fc1" if outer == "linear1" else f"{_MXNET_OUTSIDE[outer]}_{_MXNET_OUTSIDE[inner]}"
    return f"{layer}_{word if layer.endswith('conv2d') else NORM_WORDS[word]}"


_MXNET_EPSILON, _MXNET_LAST_EPSILON = 1e-3, 2e-5


def _from_mxnet(arrays: dict[str, Any]) -> dict[str, Any]:
    """InsightFace's layers as ours, which give the same in eval mode.

    Its fully connected layer has a bias, which goes into the mean that the BatchNorm behind it takes off; that
    BatchNorm's weight has no meaning and is one; and what its BatchNorms add to a variance goes into the variance.
    """
    made = dict(arrays)
    for key in arrays:
        if key.endswith("_moving_var"):
            theirs = _MXNET_LAST_EPSILON if key.startswith("fc1_") else _MXNET_EPSILON
            made[key] = arrays[key] + np.float32(theirs - EPSILON)
    if {"pre_fc1_bias", "fc1_moving_mean"} <= arrays.keys():
        made["fc1_moving_mean"] = arrays["fc1_moving_mean"] - made.pop("pre_fc1_bias")
        made["fc1_gamma"] = np.ones_like(arrays["fc1_moving_mean"])
    return made


# The linear projection of each bottleneck, before its BatchNorm; the last of each width and resolution is among the 4.
_PROJECTIONS = [f"blocks.{block}.conv.6" for block in range(15)]
_OPTIONS: dict[str, Any] = {
    **FACES,
    "taps": spread_taps(_PROJECTIONS, [_PROJECTIONS[block] for block in (4, 8, 11, 14)]),
    "layouts": (
        Layout(),
        Layout(_conv_23_key, matrices=frozenset(["linear1.conv.weight"])),
        Layout(_mxnet_key, matrices=frozenset(["linear1.conv.weight"]), adapt=_from_mxnet),
    ),
    "hints": {"linear7.conv.weight": f"the file is for images of another size than {SIDE}×{SIDE}, such as 112×96"},
}
NETWORKS = {
    "mobilefacenet": Network(_build, **_OPTIONS),
    "mobilefacenet_512": Network(_build_512, **_OPTIONS),
}
