"""Layers with PyTorch's conventions, so that weights published for torchvision mean the same here."""

from typing import Any

import flax.linen as nn
from jax import Array


def conv(features: int, size: int, *, stride: int = 1, dtype: Any = None, name: str | None = None) -> nn.Conv:
    """A convolution without bias, padded by size // 2 on every side.

    Flax's own "SAME" pads the far side only at stride 2, which moves the map by one pixel against PyTorch's.
    """
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def batch_norm(train: bool, *, epsilon: float = 1e-5, dtype: Any = None, name: str | None = None) -> nn.BatchNorm:
    """BatchNorm with PyTorch's momentum 0.1, which Flax writes as 0.9.

    The variance is taken around the mean (`use_fast_variance=False`): the shorter form loses digits when a channel's
    mean is large against its spread.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


def max_pool(x: Array) -> Array:
    """The 3×3 maximum at stride 2 with one pixel of padding: `[B, H, W, C]` to `[B, ⌈H/2⌉, ⌈W/2⌉, C]`."""
    padding: Any = ((1, 1), (1, 1))  # Flax declares the names of paddings only
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
