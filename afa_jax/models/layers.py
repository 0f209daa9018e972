"""Layers with PyTorch's conventions, so that weights published for torchvision mean the same here."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.compilation import on_cpu
from afa_jax.models.convolution import convolve, depthwise
from afa_jax.models.normalization import BatchNorm
from afa_jax.models.pooling import largest_of_nine

EPSILON = 1e-5
"""What a BatchNorm adds to a variance, as PyTorch's does."""
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / (kernel area · outputs), not cut off (He et al. 2015, eq. 14)."""


def conv(
    features: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dtype: Any = None,
    name: str | None = None,
) -> nn.Conv:
    """A convolution without bias, padded on every side by half the kernel or by `padding`.

    Flax's own "SAME" pads the far side only at stride 2, which moves the map by one pixel against PyTorch's.
    """
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = [side // 2 if padding is None else padding for side in sides]
    return nn.Conv(
        features,
        sides,
        strides=stride,
        padding=[(pad, pad) for pad in pads],
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=HE_FAN_OUT,
        conv_general_dilated=convolve,
        name=name,
    )


def batch_norm(
    train: bool, *, epsilon: float = EPSILON, scale: bool = True, dtype: Any = None, name: str | None = None
) -> BatchNorm:
    """BatchNorm with PyTorch's momentum 0.1, which Flax writes as 0.9; without `scale` its weight is one."""
    return BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        use_scale=scale,
        dtype=dtype,
        name=name,
    )


class PReLU(nn.Module):
    """max(x, 0) + slope · min(x, 0), with a slope a channel that is 0.25 at the start (He et al. 2015, eq. 2)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, x * slope.astype(x.dtype))


def max_pool(x: Array, *, padding: int = 1) -> Array:
    """The maximum of 3×3 positions at stride 2: `[B, H, W, C]` to `[B, (H + 2·padding − 3)//2 + 1, …, C]`."""
    if on_cpu():
        return largest_of_nine(x, padding)
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=_padding(padding))


def avg_pool(x: Array, size: int, stride: int, padding: int) -> Array:
    """The mean of size×size positions, the zeros of the padding counted, as PyTorch does."""
    if on_cpu():
        exact = jnp.promote_types(x.dtype, jnp.float32)  # a ninth is none in bfloat16
        kernel = jnp.full((size, size, 1, x.shape[-1]), 1 / size**2, exact)
        return depthwise(x, kernel, (stride, stride), _padding(padding))
    return nn.avg_pool(x, (size, size), strides=(stride, stride), padding=_padding(padding))


def _padding(pad: int) -> Any:  # Flax declares the names of paddings only
    return ((pad, pad), (pad, pad))
