"""Convolutions by Winograd's minimal filtering, which takes fewer products than the plain sum.

F(m, r) of Lavin & Gray (2016, §4) gives m outputs of a kernel of r values by n = m + r − 1 products in place of m r.
Along both axes: the map is cut into tiles of m₁×m₂ outputs, each of which reads n₁×n₂ inputs d; with the kernel g its
outputs are A₁ᵀ [(G₁ g G₂ᵀ) ⊙ (B₁ᵀ d B₂)] A₂. At each of n₁×n₂ places ⊙ is a product of matrices, tiles by channels and
channels by filters. The larger the tiles, the fewer the products, but the more digits are lost in the sums before and
behind them, and the longer these take.
"""

from collections.abc import Sequence
from functools import partial, reduce
from operator import add, sub
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim
from numpy.polynomial.polynomial import polyfromroots

from afa_jax.models.once import once

Padding = tuple[tuple[int, int], tuple[int, int]]

OUTPUT = "Winograd's output"
"""The name of what it puts out, where `jax.checkpoint` asks what is to be kept: this, not the products behind it."""


class Filtering(NamedTuple):
    """F(m, r) along one axis, n = m + r − 1: Aᵀ [(G g) ⊙ (Bᵀ d)] are m sums of d with g. G holds the denominators."""

    A: np.ndarray
    """`[n, m]`"""
    B: np.ndarray
    """`[n, n]`"""
    G: np.ndarray
    """`[n, r]`"""

    @classmethod
    def at(cls, outputs: int, points: Sequence[float]) -> "Filtering":
        """By Toom and Cook: a product of polynomials, from its values at n − 1 `points` and at infinity, transposed.

        So the kernel has `len(points)` + 2 − `outputs` values.
        """
        x = np.array(points, float)
        others = [np.delete(x, i) for i in range(len(x))]
        differences = np.array([np.prod(one - rest) for one, rest in zip(x, others, strict=True)])
        columns = [polyfromroots(roots) for roots in (*others, x)]
        side = len(x) + 2 - outputs
        return cls(
            _and_infinity(np.vander(x, outputs, increasing=True)),
            np.stack([np.pad(column, (0, len(x) + 1 - len(column))) for column in columns], 1),
            _and_infinity(np.vander(x, side, increasing=True) / differences[:, None]),
        )

    @property
    def outputs(self) -> int:
        """m"""
        return self.A.shape[1]

    @property
    def side(self) -> int:
        """r"""
        return self.G.shape[1]


def _and_infinity(values: np.ndarray) -> np.ndarray:
    return np.vstack([values, np.eye(values.shape[1])[-1]])


# Of what was tried of 0, ±1 and ±¼ to ±4, points that lose about the fewest digits: float32 is off by 8e-7 of a map
# with kernels of three and by 2.5e-6 with those of seven, where the plain sum is by 4e-7 (root mean squares).
_ONE = Filtering.at(1, ())
_TWO_OF_3 = Filtering.at(2, (0, 1, -1))
_FOUR_OF_3 = Filtering.at(4, (0, 1, -1, 2, -1 / 2))
_THREE_OF_7 = Filtering.at(3, (0, 1, -1, 1 / 2, -1 / 2, 3 / 2, -3 / 2, -4))

_FILTERINGS = {
    (3, 3): (_TWO_OF_3, _FOUR_OF_3),
    (1, 3): (_ONE, _FOUR_OF_3),
    (3, 1): (_FOUR_OF_3, _ONE),
    (1, 7): (_ONE, _THREE_OF_7),
    (7, 1): (_THREE_OF_7, _ONE),
}
"""By the kernel's sides, along rows and columns: the tiles that were the fastest, of each."""

# About where what is done beside the products takes as long as what they save, for all of these kernels, on two cores.
_LEAST_CHANNELS, _LEAST_TILES = 64, 64


def pays(x: Array, kernel: Array, padding: Padding) -> bool:
    """Whether it is faster for `x`, `[B, H, W, C]`, than the plain sum, on a CPU at stride 1.

    Fewer bits than float32's are too few for the sums before the products. A program that is exported for any number of
    images has the plain sum. On several devices the tiles are counted of all that one program sees.
    """
    exported = is_symbolic_dim(x.shape[0])
    if exported or _sides(kernel) not in _FILTERINGS or x.dtype not in (jnp.float32, jnp.float64):
        return False
    tiles = Tiles.of(x, kernel, padding)
    return min(kernel.shape[2:]) >= _LEAST_CHANNELS and tiles.images * tiles.rows * tiles.columns >= _LEAST_TILES


def winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    """A convolution at stride 1: `[B, H, W, C]` and `[h, w, C, K]` to `[B, H', W', K]`.

    Args:
      padding: rows of zeros before and after, then columns.
    """
    return checkpoint_name(_winograd(x, kernel, padding), OUTPUT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    return _forward(x, kernel, padding)[0]


def _forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    y, padded = _convolve(padding, x, kernel)
    return y, (padded, kernel)


def _backward(padding: Padding, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    padded, kernel = kept
    # Each value goes to where it was read from: a convolution with the kernel turned round, from filters to channels.
    rows, columns = (
        (side - 1 - low, side - 1 - high) for side, (low, high) in zip(_sides(kernel), padding, strict=True)
    )
    turned = once(kernel[::-1, ::-1].swapaxes(2, 3))  # once, and not for each of the products
    return _convolve((rows, columns), gradient, turned)[0], _kernel_gradient(padded, kernel, gradient)


_winograd.defvjp(_forward, _backward)


# `jit` only for its memory of what was traced: networks repeat their shapes. Inlined, so that the program is the same
# as without it.
@partial(jax.jit, static_argnums=0, inline=True)
def _convolve(padding: Padding, x: Array, kernel: Array) -> tuple[Array, Array]:
    """The map, and `x` as it was padded."""
    tiles = Tiles.of(x, kernel, padding)
    padded = tiles.pad(x, padding)
    transformed = _sandwich(tiles.down.G, tiles.right.G, [part for row in kernel for part in row])
    return tiles.join([d @ g for d, g in zip(tiles.read(padded), transformed, strict=True)]), padded


@partial(jax.jit, inline=True)
def _kernel_gradient(padded: Array, kernel: Array, gradient: Array) -> Array:
    images, height, width, _ = gradient.shape
    tiles = Tiles(images, height, width, *_FILTERINGS[_sides(kernel)])
    # Each step of the convolution, transposed: G₁ᵀ [(B₁ᵀ d B₂) ⊙ (A₁ y A₂ᵀ)] G₂.
    sums = [d.T @ y for d, y in zip(tiles.read(padded), tiles.spread(gradient), strict=True)]
    parts = _sandwich(tiles.down.G.T, tiles.right.G.T, sums)
    return jnp.stack(parts).reshape(kernel.shape)


class Tiles(NamedTuple):
    """Those at the far edges may reach beyond maps of `height` × `width` outputs."""

    images: int
    height: int
    width: int
    down: Filtering
    right: Filtering

    @classmethod
    def of(cls, x: Array, kernel: Array, padding: Padding) -> "Tiles":
        """For what the convolution of `x` puts out."""
        height, width = (
            size + sum(pads) - side + 1 for size, pads, side in zip(x.shape[1:3], padding, _sides(kernel), strict=True)
        )
        return cls(x.shape[0], height, width, *_FILTERINGS[_sides(kernel)])

    @property
    def rows(self) -> int:
        return -(-self.height // self.down.outputs)

    @property
    def columns(self) -> int:
        return -(-self.width // self.right.outputs)

    @property
    def _whole(self) -> tuple[int, int]:
        """Rows and columns of outputs, with those beyond the map."""
        return self.down.outputs * self.rows, self.right.outputs * self.columns

    def pad(self, x: Array, padding: Padding) -> Array:
        """All that the tiles read."""
        (top, _), (left, _) = padding
        height, width = self._whole
        down, right = height + self.down.side - 1 - x.shape[1], width + self.right.side - 1 - x.shape[2]
        return _pad(x, (top, down - top), (left, right - left))

    def read(self, padded: Array) -> list[Array]:
        """B₁ᵀ d B₂."""
        return self._of_tiles(self.down.B.T, self.right.B.T, padded)

    def join(self, products: Sequence[Array]) -> Array:
        """A₁ᵀ m A₂ of the places' `[tiles, K]`, put side by side."""
        outputs = self.right.outputs
        places = [product.reshape(self.images, self.rows, self.columns, -1) for product in products]
        parts = _sandwich(self.down.A.T, self.right.A.T, places)
        rows = [jnp.stack(parts[i : i + outputs], 3) for i in range(0, len(parts), outputs)]
        y = jnp.stack(rows, 2).reshape(self.images, *self._whole, -1)
        return y[:, : self.height, : self.width]

    def spread(self, y: Array) -> list[Array]:
        """The transpose of `join`, A₁ y A₂ᵀ."""
        height, width = self._whole
        whole = _pad(y, (0, height - self.height), (0, width - self.width))
        return self._of_tiles(self.down.A, self.right.A, whole)

    def _of_tiles(self, left: np.ndarray, right: np.ndarray, x: Array) -> list[Array]:
        """`left` t `right`ᵀ of what each tile t of `x` holds, row by row, of `[tiles, C]` each."""
        down, across, channels = self.down.outputs, self.right.outputs, x.shape[3]
        height, width = down * (self.rows - 1) + 1, across * (self.columns - 1) + 1
        places = [
            lax.slice(x, (0, i, j, 0), (x.shape[0], i + height, j + width, channels), (1, down, across, 1))
            for i in range(left.shape[1])
            for j in range(right.shape[1])
        ]
        return [part.reshape(-1, channels) for part in _sandwich(left, right, places)]


def _sides(kernel: Array) -> tuple[int, int]:
    return kernel.shape[0], kernel.shape[1]


def _pad(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _sandwich(left: np.ndarray, right: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """`left` p `right`ᵀ of a matrix p of arrays, both row by row."""
    return [_combination(factors, parts) for factors in np.kron(left, right)]


def _combination(factors: np.ndarray, parts: Sequence[Array]) -> Array:
    """The sum of `factors` times `parts`, with a product for each size of factors and not for each part."""
    sums = []
    for size in np.unique(np.abs(factors[factors != 0])):
        plus, minus = (
            [part for factor, part in zip(factors, parts, strict=True) if factor == signed] for signed in (size, -size)
        )
        total = reduce(sub, minus, reduce(add, plus)) if plus else -reduce(add, minus)
        sums.append(total if size == 1 else float(size) * total)
    return reduce(add, sums)
