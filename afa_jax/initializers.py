"""How PyTorch starts its layers, which published schedules assume."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def torch_linear(features: int, fan_in: int, *, use_bias: bool = True, name: str | None = None) -> nn.Dense:
    """A fully connected layer that starts as `torch.nn.Linear(fan_in, features)`: uniform in ±1/√fan_in, bias too."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, use_bias=use_bias, kernel_init=init, bias_init=init, name=name)
