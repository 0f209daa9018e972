"""Max-pooling that keeps where each largest value was for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from afa_jax.models.once import gradient_once, once

Pair = tuple[int, int]
_NOWHERE = -9  # as a row or a column of a window: no place of it, nor -1


def largest_of_nine(x: Array, padding: int) -> Array:
    """The maximum of 3×3 positions at stride 2, and NaN where one is; the gradient goes to the first that is largest.

    `lax.reduce_window`, which it equals, looks for that place anew in the backward pass.

    Args:
      x: `[B, H, W, C]`, to `[B, (H + 2·padding − 3)//2 + 1, …, C]`.
      padding: rows and columns around, fewer than 3.
    """
    height, width = x.shape[1:3]
    return _largest(gradient_once(x), (height, width), padding)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _largest(x: Array, sides: Pair, padding: int) -> Array:
    return _forward(x, sides, padding)[0]


def _forward(x: Array, sides: Pair, padding: int) -> tuple[Array, Array]:
    height, width = ((size + 2 * padding - 3) // 2 + 1 for size in sides)
    edge = (padding, padding, 0)
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), edge, edge, (0, 0, 0)))
    largest = jnp.full((x.shape[0], height, width, x.shape[3]), -jnp.inf, x.dtype)
    place = jnp.zeros(largest.shape, jnp.int8)
    for n, (i, j) in enumerate(np.ndindex(3, 3)):
        here = padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        larger = (here > largest) | jnp.isnan(here)
        largest, place = jnp.maximum(largest, here), jnp.where(larger, jnp.int8(n), place)
    return largest, once(place)  # the backward pass reads it, or the map again


def _backward(sides: Pair, padding: int, place: Array, gradient: Array) -> tuple[Array]:
    """Of the padded images row 2m is the first one of window m and the last one of window m − 1, row 2m + 1 the second
    one of window m alone; columns alike. So blocks of 2×2 values have four windows in common."""
    blocks = [-(-(size + padding) // 2) for size in sides]
    of_blocks = jnp.zeros((), jnp.promote_types(gradient.dtype, jnp.float32))
    for back in np.ndindex(2, 2):
        # Where in the window each row and each column of the block is.
        down, right = (np.array([2, _NOWHERE] if step else [0, 1], np.int8) for step in back)
        edges = [(step, n - step - size, 0) for step, n, size in zip(back, blocks, place.shape[1:3], strict=True)]
        pads = ((0, 0, 0), *edges, (0, 0, 0))
        at, value = lax.pad(place, jnp.int8(-1), pads), lax.pad(gradient, jnp.zeros((), gradient.dtype), pads)
        here = at[:, :, None, :, None] == (3 * down[:, None] + right)[:, None, :, None]
        of_blocks += jnp.where(here, value[:, :, None, :, None].astype(of_blocks.dtype), 0)
    whole = of_blocks.reshape(place.shape[0], 2 * blocks[0], 2 * blocks[1], place.shape[3])
    of_x = whole[:, padding : padding + sides[0], padding : padding + sides[1]]
    return (of_x.astype(gradient.dtype),)


_largest.defvjp(_forward, _backward)
