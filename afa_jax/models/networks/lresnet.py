"""LResNet34E-IR (Deng et al. 2019), the residual network whose last layers, "E", make an embedding of 512 numbers.

Its layers have the names of the published files for MXNet, with dots between stage, unit and layer:
`stage1.unit3.conv2` is the last convolution of the first stage.
"""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.models.faces import FACES, NORM_WORDS, check_side, face_head
from afa_jax.models.layers import HE_FAN_OUT, PReLU, batch_norm, conv
from afa_jax.models.network import HALF, Layout, Network, spread_taps

_DEPTHS = (3, 4, 6, 3)


class ResidualUnit(nn.Module):
    """BatchNorm, 3×3, BatchNorm, PReLU, 3×3 with the stride, BatchNorm, and the shortcut; nothing behind the sum.

    The shortcut of a strided unit is a 1×1 convolution `conv1sc` and its BatchNorm `sc`.
    """

    width: int
    stride: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def norm(name: str) -> nn.BatchNorm:
            return batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name=name)

        y = conv(self.width, 3, dtype=self.dtype, name="conv1")(norm("bn1")(x))
        y = PReLU(name="relu1")(norm("bn2")(y))
        y = norm("bn3")(conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv2")(y))
        if self.stride > 1:
            x = norm("sc")(conv(self.width, 1, stride=self.stride, dtype=self.dtype, name="conv1sc")(x))
        return x + y


class ResidualStage(nn.Module):
    """`depth` units of one width, from `unit1` on; the first halves the resolution."""

    depth: int
    width: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(self.depth):
            unit = ResidualUnit(self.width, 2 if i == 0 else 1, self.epsilon, self.dtype, name=f"unit{i + 1}")
            x = unit(x, train)
        return x


class LResNet34(nn.Module):
    """`[B, 112, 112, 3]` to float32 `[B, num_classes]`; the embedding has 512 numbers.

    The last BatchNorm, `fc1`, has no weight: it is fixed at one.

    Raises:
      UserError: images of another size, for which the fully connected layer is not made.
    """

    num_classes: int
    epsilon: float = 2e-5
    dropout: float = 0.4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        check_side("LResNet34", x)
        x = conv(64, 3, dtype=self.dtype, name="conv0")(x)
        x = PReLU(name="relu0")(batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name="bn0")(x))
        for i, depth in enumerate(_DEPTHS):
            x = ResidualStage(depth, 64 * 2**i, self.epsilon, self.dtype, name=f"stage{i + 1}")(x, train)
        x = batch_norm(train, epsilon=self.epsilon, dtype=self.dtype, name="bn1")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32))
        # Channels come first, as in the published files, whose rows are then the same ones here.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = nn.Dense(512, kernel_init=HE_FAN_OUT, name="pre_fc1")(x)
        x = batch_norm(train, epsilon=self.epsilon, scale=False, name="fc1")(x)
        return face_head(self.num_classes, 512, name="head")(x)


def _build(num_classes: int, dtype: Any) -> LResNet34:
    return LResNet34(num_classes, dtype=dtype)


def _build_iresnet(num_classes: int, dtype: Any) -> LResNet34:
    return LResNet34(num_classes, epsilon=1e-5, dropout=0.0, dtype=dtype)


# In MXNet each kind of layer has words of its own; those of a convolution and a fully connected layer are PyTorch's.
_NORM = re.compile(r"(.*\.)?(bn\d|relu\d|sc|fc1)")


def _mxnet_key(key: str) -> str:
    """`stage1.unit1.bn1.running_var` to `stage1_unit1_bn1_moving_var`; PReLU's slope is a `gamma`."""
    layer, _, word = key.rpartition(".")
    return f"{layer}.{NORM_WORDS[word] if _NORM.fullmatch(layer) else word}".replace(".", "_")


_IN_UNIT = {"relu1": "prelu", "conv1sc": "downsample.0", "sc": "downsample.1"}
_OUTSIDE = {"conv0": "conv1", "bn0": "bn1", "relu0": "prelu", "bn1": "bn2", "pre_fc1": "fc", "fc1": "features"}


def _arcface_torch_key(key: str) -> str:
    """`stage1.unit1.relu1.weight` to `layer1.0.prelu.weight`: units counted from zero, torchvision's names in them."""
    inside = re.fullmatch(r"stage(\d)\.unit(\d)\.(\w+)\.(\w+)", key)
    if inside:
        stage, unit, layer, word = inside.groups()
        return f"layer{stage}.{int(unit) - 1}.{_IN_UNIT.get(layer, layer)}.{word}"
    layer, _, word = key.rpartition(".")
    return f"{_OUTSIDE[layer]}.{word}"


# The second convolution of each unit, before its BatchNorm.
_SECOND = [f"stage{i + 1}.unit{unit}.conv2" for i, depth in enumerate(_DEPTHS) for unit in range(1, depth + 1)]
_OPTIONS: dict[str, Any] = {
    **FACES,
    "taps": spread_taps(_SECOND, [f"stage{i + 1}.unit{depth}.conv2" for i, depth in enumerate(_DEPTHS)]),
    "ones": ("fc1.weight",),
}

NETWORKS = {
    "lresnet34e_ir": Network(_build, layouts=(Layout(), Layout(_mxnet_key, fills_ones=True)), **_OPTIONS),
    # arcface_torch's network: the same layers with another epsilon and other grey levels, so the files of one are not
    # those of the other.
    "iresnet34": Network(_build_iresnet, layouts=(Layout(_arcface_torch_key),), **{**_OPTIONS, "std": HALF}),
}
