"""3×3 convolutions by Winograd's minimal filtering, which takes 16 products where the plain sum takes 36.

F(2×2, 3×3) of Lavin & Gray (2016, §4.1). The map is cut into tiles of 2×2 outputs, each of which reads 4×4 inputs d;
with the kernel g its outputs are Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. At each of 4×4 places ⊙ is a product of matrices, tiles by
channels and channels by filters. A, B and G hold 0, ±½ and ±1 alone, so float32 loses hardly more digits than by the
plain sum. Tiles of 4×4 outputs would save more products, but their matrices hold numbers up to 8.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim

from afa_jax.models.once import once

Padding = tuple[tuple[int, int], tuple[int, int]]

OUTPUT = "Winograd's output"
"""The name of what it puts out, where `jax.checkpoint` asks what is to be kept: this, not the products behind it."""

_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])
_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

# Below these, what is done beside the products takes longer than what they save (measured on two cores).
_LEAST_CHANNELS, _LEAST_TILES, _LEAST_CHANNELS_OF_GRADIENT = 64, 128, 96


def pays(x: Array, kernel: Array, padding: Padding) -> bool:
    """Whether it is faster for `x`, `[B, H, W, C]`, than the plain sum, on a CPU at stride 1.

    Fewer bits than float32's are too few for the sums before the products. A program that is exported for any number of
    images has the plain sum. On several devices the tiles are counted of all that one program sees.
    """
    exported = is_symbolic_dim(x.shape[0])
    if exported or kernel.shape[:2] != (3, 3) or x.dtype not in (jnp.float32, jnp.float64):
        return False
    tiles = Tiles.of(x, padding)
    return min(kernel.shape[2:]) >= _LEAST_CHANNELS and tiles.images * tiles.rows * tiles.columns >= _LEAST_TILES


def winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    """A 3×3 convolution at stride 1: `[B, H, W, C]` and `[3, 3, C, K]` to `[B, H', W', K]`.

    Args:
      padding: rows of zeros before and after, then columns.
    """
    return checkpoint_name(_winograd(x, kernel, padding), OUTPUT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    return _forward(x, kernel, padding)[0]


def _forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    tiles = Tiles.of(x, padding)
    padded = tiles.pad(x, padding)
    return _convolve(tiles, padded, kernel), (padded, kernel)


def _backward(padding: Padding, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    padded, kernel = kept
    # Each value goes to where it was read from: a convolution with the kernel turned round, from filters to channels.
    (top, bottom), (left, right) = padding
    around = (2 - top, 2 - bottom), (2 - left, 2 - right)
    back = Tiles.of(gradient, around)
    turned = once(kernel[::-1, ::-1].swapaxes(2, 3))  # once, and not for each of 16 products
    return _convolve(back, back.pad(gradient, around), turned), _kernel_gradient(padded, kernel, gradient)


_winograd.defvjp(_forward, _backward)


def _convolve(tiles: "Tiles", padded: Array, kernel: Array) -> Array:
    """Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A."""
    transformed = _sandwich(_G, lambda i, j: kernel[i, j])
    return tiles.join([d @ g for d, g in zip(tiles.read(padded), transformed, strict=True)])


def _kernel_gradient(padded: Array, kernel: Array, gradient: Array) -> Array:
    tiles = Tiles(*gradient.shape[:3])
    if min(kernel.shape[2:]) < _LEAST_CHANNELS_OF_GRADIENT:
        return jax.linear_transpose(partial(_plain, padded[:, : tiles.height + 2, : tiles.width + 2]), kernel)(
            gradient
        )[0]
    # Each step of the convolution, transposed: Gᵀ [(Bᵀ d B) ⊙ (A y Aᵀ)] G.
    sums = [d.T @ y for d, y in zip(tiles.read(padded), tiles.spread(gradient), strict=True)]
    return jnp.stack(_sandwich(_G.T, lambda i, j: sums[4 * i + j])).reshape(kernel.shape)


def _plain(padded: Array, kernel: Array) -> Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=dimensions)


class Tiles(NamedTuple):
    """Of 2×2 outputs; those at the far edges may reach beyond maps of `height` × `width`."""

    images: int
    height: int
    width: int

    @classmethod
    def of(cls, x: Array, padding: Padding) -> "Tiles":
        """For what the convolution of `x` puts out."""
        height, width = (size + sum(pads) - 2 for size, pads in zip(x.shape[1:3], padding, strict=True))
        return cls(x.shape[0], height, width)

    @property
    def rows(self) -> int:
        return -(-self.height // 2)

    @property
    def columns(self) -> int:
        return -(-self.width // 2)

    def pad(self, x: Array, padding: Padding) -> Array:
        """All that the tiles read."""
        down, right = 2 * self.rows + 2 - x.shape[1], 2 * self.columns + 2 - x.shape[2]
        (top, _), (left, _) = padding
        return _pad(x, (top, down - top), (left, right - left))

    def read(self, padded: Array) -> list[Array]:
        """Bᵀ d B, 4×4 times `[tiles, C]`."""
        return _sandwich(_B.T, partial(self._every, padded))

    def join(self, products: Sequence[Array]) -> Array:
        """Aᵀ m A of 4×4 times `[tiles, K]`, put side by side."""
        shape = self.images, self.rows, self.columns, -1
        parts = _sandwich(_A.T, lambda i, j: products[4 * i + j].reshape(shape))
        y = jnp.stack([jnp.stack(parts[:2], 3), jnp.stack(parts[2:], 3)], 2)
        y = y.reshape(self.images, 2 * self.rows, 2 * self.columns, -1)
        return y[:, : self.height, : self.width]

    def spread(self, y: Array) -> list[Array]:
        """The transpose of `join`, A y Aᵀ."""
        whole = _pad(y, (0, 2 * self.rows - self.height), (0, 2 * self.columns - self.width))
        return _sandwich(_A, partial(self._every, whole))

    def _every(self, x: Array, i: int, j: int) -> Array:
        """What each tile has at row i and column j, `[tiles, C]`."""
        end = i + 2 * self.rows - 1, j + 2 * self.columns - 1
        return lax.slice(x, (0, i, j, 0), (x.shape[0], *end, x.shape[3]), (1, 2, 2, 1)).reshape(-1, x.shape[3])


def _pad(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _sandwich(matrix: np.ndarray, part: Callable[[int, int], Array]) -> list[Array]:
    """M p Mᵀ of a matrix p of arrays, row by row."""
    rows = [[(i, float(factor)) for i, factor in enumerate(row) if factor] for row in matrix]
    return [
        reduce(add, (_times(of_i * of_j, part(i, j)) for i, of_i in row for j, of_j in column))
        for row in rows
        for column in rows
    ]


def _times(factor: float, x: Array) -> Array:
    return x if factor == 1 else -x if factor == -1 else factor * x
