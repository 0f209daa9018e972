"""Networks that look at one pixel at a time, so that what their units detect is known."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from afa_jax.analysis.trained import Net
from afa_jax.data.augment import Preprocess


class Look(nn.Module):
    """The layer `see`: each unit is how much of its colour a pixel has, in the mean over `pool` × `pool` pixels."""

    colours: tuple[tuple[float, float, float], ...]
    pool: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        x = See(self.colours, self.pool, name="see")(x)
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


class See(nn.Module):
    colours: tuple[tuple[float, float, float], ...]
    pool: int

    @nn.compact
    def __call__(self, x):
        return nn.avg_pool(x @ jnp.array(self.colours).T, (self.pool,) * 2, (self.pool,) * 2)


def net(*colours, pool=1):
    module = Look(colours, pool)
    return Net(module, {"params": {"fc": {"kernel": np.zeros((len(colours), 2)), "bias": np.zeros(2)}}})


def plain(size):
    """Images as they are, between 0 and 1."""
    return Preprocess(size, flip=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
