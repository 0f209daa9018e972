"""MobileNetV2 (Sandler et al. 2018) at torchvision's layout and layer names."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.initializers import torch_linear
from afa_jax.models.layers import batch_norm, conv
from afa_jax.models.network import Network, spread_taps
from afa_jax.models.once import gradient_once

# (expansion, channels, blocks, stride of the first), Sandler et al. (2018), Table 2.
_SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class ConvNormRelu6(nn.Module):
    """`0` a convolution, `1` BatchNorm, then ReLU6."""

    width: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv(self.width, self.kernel, stride=self.stride, groups=self.groups, dtype=self.dtype, name="0")(x)
        return nn.relu6(batch_norm(train, dtype=self.dtype, name="1")(x))


class Inner(nn.Module):
    """A block's layers: expansion (left out at 1), depthwise 3×3, linear projection and its BatchNorm."""

    expansion: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = x.shape[-1] * self.expansion
        first = 0
        if self.expansion > 1:
            x = ConvNormRelu6(hidden, dtype=self.dtype, name="0")(x, train)
            first = 1
        x = ConvNormRelu6(hidden, 3, self.stride, hidden, self.dtype, name=str(first))(x, train)
        x = conv(self.width, 1, dtype=self.dtype, name=str(first + 1))(x)
        return batch_norm(train, dtype=self.dtype, name=str(first + 2))(x)


class InvertedResidual(nn.Module):
    """An expanded depthwise block; its shortcut is there where shape and resolution stay."""

    expansion: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = Inner(self.expansion, self.width, self.stride, self.dtype, name="conv")(x, train)
        return gradient_once(x + y) if x.shape == y.shape else y


class Features(nn.Module):
    """All convolutions: `[B, H, W, 3]` to `[B, H/32, W/32, 1280]`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = ConvNormRelu6(32, 3, 2, dtype=self.dtype, name="0")(x, train)
        number = 0
        for expansion, width, blocks, stride in _SETTINGS:
            for i in range(blocks):
                number += 1
                block = InvertedResidual(expansion, width, stride if i == 0 else 1, self.dtype, name=str(number))
                x = block(x, train)
        return ConvNormRelu6(1280, dtype=self.dtype, name=str(number + 1))(x, train)


class Classifier(nn.Module):
    """Dropout and `1`, the head."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return torch_linear(self.num_classes, x.shape[-1], name="1")(x)


class MobileNetV2(nn.Module):
    """`[B, H, W, 3]` to float32 `[B, num_classes]`."""

    num_classes: int
    dropout: float = 0.2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = Features(self.dtype, name="features")(x, train)
        return Classifier(self.num_classes, self.dropout, name="classifier")(x.astype(jnp.float32).mean((1, 2)), train)


def _build(num_classes: int, dtype: Any) -> MobileNetV2:
    return MobileNetV2(num_classes, dtype=dtype)


# The linear projection of each block, before its BatchNorm; the released code aligns those of blocks 5, 9, 13 and 17.
_PROJECTIONS = ("features.1.conv.1", *(f"features.{block}.conv.2" for block in range(2, 18)))

NETWORKS = {
    "mobilenet_v2": Network(
        _build,
        image_size=224,
        resize=256,
        taps=spread_taps(_PROJECTIONS, [f"features.{block}.conv.2" for block in (5, 9, 13, 17)]),
        head="classifier.1",
        embedding="classifier",
        weights={
            "imagenet1k_v1": "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
            "imagenet1k_v2": "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
        },
    )
}
