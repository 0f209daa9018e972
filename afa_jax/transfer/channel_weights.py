"""DELTA's channel weights: what the loss of an adapted source network rises by without a channel (DELTA §3.4)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array


def loss_increases(loss: Callable[[Array], Array], which: Array, channels: int, together: int) -> Array:
    """L(without channel c) − L, for each channel c of `which` (DELTA eq. 9).

    Under `vmap`, what does not depend on the mask (the network up to the tap) is computed once for `together` channels,
    and only the rest for each of them.

    Args:
      loss: the loss under a mask `[channels]` that multiplies the channels.
      which: int `[N]`.
      channels: C.
      together: how many channels are left out at once; memory grows with it.
    """
    without = jax.lax.map(lambda c: loss(1.0 - jax.nn.one_hot(c, channels)), which, batch_size=together)
    return without - loss(jnp.ones(channels))


def channel_weights(increases: Mapping[str, Array], convention: str) -> dict[str, Array]:
    """Weights of the channels of each tap, positive and summing to 1.

    paper: softmax of the increases (DELTA §3.4). released and normalised: they are first brought to mean 0 and standard
    deviation 1 within the layer, and divided by 5, as the authors' code does.
    """

    def weigh(increase: Array) -> Array:
        if convention != "paper":
            spread = increase.std()
            # Where no channel matters more than another, all weigh the same.
            increase = jnp.where(spread > 0, (increase - increase.mean()) / jnp.where(spread > 0, spread, 1) / 5, 0)
        return jax.nn.softmax(increase)

    return {tap: weigh(jnp.asarray(increase, jnp.float32)) for tap, increase in increases.items()}
