"""BatchNorm (Ioffe & Szegedy 2015) with a gradient of its own."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from afa_jax.batch_axis import BatchAxis
from afa_jax.compilation import on_cpu

_PARTS = 8  # of which XLA unrolls a sum, and computes it for a vector of values


class BatchNorm(nn.BatchNorm):
    """What Flax's own gives, `[B, …, C]` to the same, with its names of parameters and statistics.

    Of Flax's fields those count that `layers.batch_norm` sets, `axis_name`, and the initializers. Statistics and sums
    are of at least float32.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", self.bias_init, shape)
        if self.use_running_average:
            y = _affine(_exact(x), mean.value, scale * lax.rsqrt(variance.value + self.epsilon), bias)
        else:
            axis = BatchAxis(None if self.is_initializing() else self.axis_name)
            exact = x.astype(jnp.promote_types(x.dtype, self.dtype or x.dtype))  # what is put out is no finer
            normalised: Any = normalise(exact, scale, bias, self.epsilon, axis)
            y, means, variances = normalised
            if not self.is_initializing():
                mean.value = self.momentum * mean.value + (1 - self.momentum) * means
                variance.value = self.momentum * variance.value + (1 - self.momentum) * variances
        return y.astype(self.dtype or x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x: Array, scale: Array, bias: Array, epsilon: float, axis: BatchAxis) -> tuple[Array, Array, Array]:
    """Each channel of `[B, …, C]` to mean `bias` and spread `scale` over the batch; with its mean and variance, `[C]`.

    The last two have no gradient.
    """
    return _forward(x, scale, bias, epsilon, axis)[0]


def _forward(x: Array, scale: Array, bias: Array, epsilon: float, axis: BatchAxis) -> Any:
    mean, variance = _moments(x, axis)
    spread = lax.rsqrt(variance + epsilon)
    y = _affine(_exact(x), mean, scale * spread, bias).astype(x.dtype)
    return (y, mean, variance), (x, scale, bias, mean, spread)


def _moments(x: Array, axis: BatchAxis) -> tuple[Array, Array]:
    """Each channel's mean and variance.

    Around the mean, which must be known first, or in one reading around what is near it: the shorter form loses digits
    when a channel's mean is large against its spread. Of n images the first one's mean is off by less than √n times the
    spread, however they differ, so that hardly more than log₂ n bits are lost, and mostly none. In bfloat16 values that
    are near each other have lost these before, and zero is near enough.
    """
    exact, short = _exact(x), x.dtype == jnp.bfloat16
    if not short and not _side_by_side(x):
        mean = axis.mean(_mean(exact))
        return mean, axis.mean(_mean(jnp.square(exact - mean)))
    near = 0.0 if short else axis.mean(_mean(exact[:1]))
    off, square = axis.mean(_means(exact - near, jnp.square(exact - near)))
    return near + off, jnp.maximum(square - jnp.square(off), 0)


def _backward(epsilon: float, axis: BatchAxis, kept: tuple[Array, ...], gradients: tuple[Array, ...]) -> Any:
    values, scale, bias, mean, spread = kept
    x, gradient, count = _exact(values), _exact(gradients[0]), values.size // values.shape[-1]
    of_bias, along = _means(gradient, gradient * (x * spread - mean * spread))
    constant, linear = axis.mean((of_bias, along))
    slope = scale * spread
    # slope · (gradient − constant − linear · (x − mean) · spread), in as few operations a value as can be.
    by_x = -slope * spread * linear
    of_x = slope * gradient + (by_x * x + (-slope * constant - by_x * mean))
    return of_x.astype(values.dtype), (count * along).astype(scale.dtype), (count * of_bias).astype(bias.dtype)


normalise.defvjp(_forward, _backward)


def _exact(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _affine(x: Array, mean: Array, slope: Array, bias: Array) -> Array:
    return x * slope + (bias - mean * slope)


def _mean(x: Array) -> Array:
    return x.mean(tuple(range(x.ndim - 1)))


def _means(a: Array, b: Array) -> tuple[Array, Array]:
    """Each channel's mean of both, in one pass where it can be: each sum by itself computes anew what goes into it."""
    if not _side_by_side(a):
        return _mean(a), _mean(b)
    count, zeros = a.size // a.shape[-1], (np.zeros((), a.dtype),) * 2
    parts = tuple(x.reshape(_PARTS, -1, x.shape[-1]) for x in (a, b))
    sums = lax.reduce(parts, zeros, lambda x, y: (x[0] + y[0], x[1] + y[1]), (0,))
    return sums[0].sum(0) / count, sums[1].sum(0) / count


def _side_by_side(x: Array) -> bool:
    """Whether eight parts of it are gone through side by side: on one CPU, because parts do not lie as devices' do."""
    return on_cpu() and jax.device_count() == 1 and x.size // x.shape[-1] % _PARTS == 0
