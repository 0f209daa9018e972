"""The two attentive modules of AFA. Both read the teacher's features and are thrown away after training."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from afa_jax.initializers import torch_linear


class SpatialAttention(nn.Module):
    """SAM: where in the map the teacher's features matter for this sample (AFA §4.1, eq. 5, Table 1).

    The mean over channels goes through FC(HW→H, no bias), ReLU, FC(H→HW) and a softmax over positions, in float32.
    Parameters: 2H³ + H² for square maps.

    Shapes: `[B, H, W, C]` to `[B, H·W]`; each row sums to 1, positions in row-major order.
    """

    @nn.compact
    def __call__(self, features: Array) -> Array:
        batch, height, width, _ = features.shape
        x = features.astype(jnp.float32).mean(-1).reshape(batch, height * width)
        x = nn.relu(torch_linear(height, height * width, use_bias=False)(x))
        return nn.softmax(torch_linear(height * width, height)(x))


class ChannelAttention(nn.Module):
    """CAM: which of the teacher's channels matter for this sample (AFA §4.2, eq. 7, Table 1).

    Each channel's flattened map goes through FC(HW→H, no bias), ReLU and FC(H→1, no bias), both shared by all
    channels; a bias for each channel, zero at the start, is added before the softmax over channels, in float32.
    Parameters: H³ + H + C for square maps.

    Shapes: `[B, H, W, C]` to `[B, C]`; each row sums to 1.
    """

    @nn.compact
    def __call__(self, features: Array) -> Array:
        batch, height, width, channels = features.shape
        x = features.astype(jnp.float32).reshape(batch, height * width, channels).swapaxes(1, 2)
        x = nn.relu(torch_linear(height, height * width, use_bias=False)(x))
        x = torch_linear(1, height, use_bias=False)(x)[..., 0]
        return nn.softmax(x + self.param("bias", nn.initializers.zeros, (channels,)))
