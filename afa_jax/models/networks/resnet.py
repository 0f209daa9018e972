"""Residual networks (He et al. 2016) at torchvision's layout, layer names and start.

A layer's path here is its name there: `layer3.22.conv3` is the last convolution of the third stage of ResNet-101.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.initializers import torch_linear
from afa_jax.models.layers import batch_norm, conv, max_pool
from afa_jax.models.network import Network, spread_taps
from afa_jax.models.once import gradient_once, once


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[B, H, W, C]` to `[B, H/stride, W/stride, width]`."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = batch_norm(train, dtype=self.dtype, name="bn2")(y)
        return once(nn.relu(gradient_once(y + _shortcut(x, y, self.stride, train, self.dtype))))


class Bottleneck(nn.Module):
    """1×1, 3×3 (which holds the stride, as torchvision has it) and 1×1 to four times the width."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(batch_norm(train, dtype=self.dtype, name="bn2")(y))
        y = conv(4 * self.width, 1, dtype=self.dtype, name="conv3")(y)
        y = batch_norm(train, dtype=self.dtype, name="bn3")(y)
        return once(nn.relu(gradient_once(y + _shortcut(x, y, self.stride, train, self.dtype))))


class Downsample(nn.Module):
    """The projection on a shortcut whose shape changes: a strided 1×1 convolution and BatchNorm."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv(self.features, 1, stride=self.stride, dtype=self.dtype, name="0")(x)
        return batch_norm(train, dtype=self.dtype, name="1")(x)


def _shortcut(x: Array, y: Array, stride: int, train: bool, dtype: Any) -> Array:
    return x if x.shape == y.shape else Downsample(y.shape[-1], stride, dtype, name="downsample")(x, train)


class ResidualStage(nn.Module):
    """`depth` blocks of one width; the first one holds the stride."""

    block: Callable[..., nn.Module]
    depth: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(self.depth):
            x = self.block(self.width, self.stride if i == 0 else 1, self.dtype, name=str(i))(x, train)
        return x


class ResNet(nn.Module):
    """Stem, four stages, the mean over positions, and the head `fc`: `[B, H, W, 3]` to float32 `[B, num_classes]`.

    `small_images` takes a 3×3 stem at stride 1 without pooling, as He et al. (2016, §4.2) do for 32×32 images.
    """

    block: Callable[..., nn.Module]
    depths: tuple[int, int, int, int]
    num_classes: int
    width: int = 64
    small_images: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        size, stride = (3, 1) if self.small_images else (7, 2)
        x = conv(self.width, size, stride=stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(x))
        if not self.small_images:
            x = once(max_pool(x))
        for i, depth in enumerate(self.depths):
            stage = ResidualStage(self.block, depth, self.width * 2**i, min(i + 1, 2), self.dtype, name=f"layer{i + 1}")
            x = stage(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return torch_linear(self.num_classes, x.shape[-1], name="fc")(x)


def _taps(block: type, depths: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    """At raw convolution outputs (before BatchNorm), as released: the last convolution of each block.

    Where a stage has fewer than three blocks, both convolutions of its blocks can be tapped.
    """
    last = ("conv3",) if block is Bottleneck else ("conv2",) if min(depths) > 2 else ("conv1", "conv2")
    layers = [f"layer{i + 1}.{b}.{c}" for i, depth in enumerate(depths) for b in range(depth) for c in last]
    return spread_taps(layers, [f"layer{i + 1}.{depth - 1}.{last[-1]}" for i, depth in enumerate(depths)])


def _entry(block: type, depths: tuple[int, int, int, int], **weights: str) -> Network:
    def build(num_classes: int, dtype: Any) -> ResNet:
        return ResNet(block, depths, num_classes, dtype=dtype)

    return Network(build, image_size=224, resize=256, taps=_taps(block, depths), weights=weights)


def _build_small(num_classes: int, dtype: Any) -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes, width=16, small_images=True, dtype=dtype)


_TORCH = "https://download.pytorch.org/models"
_PLACES = "http://places2.csail.mit.edu/models_places365"

# The small network has twelve convolutions in all, in the order of its parts.
_ALL_OF_SMALL = (
    *("conv1", "layer1.0.conv1", "layer1.0.conv2"),
    *(f"layer{part}.0.{name}" for part in (2, 3, 4) for name in ("conv1", "downsample.0", "conv2")),
)

NETWORKS = {
    "resnet18": _entry(
        BasicBlock,
        (2, 2, 2, 2),
        imagenet1k_v1=f"{_TORCH}/resnet18-f37072fd.pth",
        places365=f"{_PLACES}/resnet18_places365.pth.tar",
    ),
    "resnet34": _entry(BasicBlock, (3, 4, 6, 3), imagenet1k_v1=f"{_TORCH}/resnet34-b627a593.pth"),
    "resnet50": _entry(
        Bottleneck,
        (3, 4, 6, 3),
        imagenet1k_v1=f"{_TORCH}/resnet50-0676ba61.pth",
        imagenet1k_v2=f"{_TORCH}/resnet50-11ad3fa6.pth",
        places365=f"{_PLACES}/resnet50_places365.pth.tar#sha256="
        "46529c86902bd0cfb0ea562a30b2850c28d2620d96282b3db9c318e1d774f6c5",
    ),
    "resnet101": _entry(
        Bottleneck,
        (3, 4, 23, 3),
        imagenet1k_v1=f"{_TORCH}/resnet101-63fe2227.pth",
        imagenet1k_v2=f"{_TORCH}/resnet101-cd907fc2.pth",
    ),
    "resnet10_small": Network(
        _build_small,
        image_size=32,
        resize=36,
        taps={**_taps(BasicBlock, (1, 1, 1, 1)), 12: _ALL_OF_SMALL},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
