"""All pairs of images, block by block on the device: similarities at chosen ranks, and counts above them.

No list of pairs is ever made, and no similarity is kept. The similarity at a rank is found as in a radix sort: floats
are mapped to whole numbers of the same order, of which one pass over all pairs counts the first 11 bits, the next pass
the following 11 bits of those that share the first, and the third the last ones. What is found is exact, for any
number of ranks at once, and the counts that are in memory do not depend on the number of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

_WORD, _DIGIT = 32, 11  # bits of a float32, and of what one pass tells apart
_LARGEST = np.uint32(2**_WORD - 1)


@dataclass(frozen=True)
class Pairs:
    """The pairs of N images.

    Attributes:
      embeddings: float32 `[N, D]`, sorted by label.
      labels: int `[N]`, counted from 0 without a gap.
      block: images in a block; a block of pairs is `[block, block]`.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    block: int

    @classmethod
    def of(cls, embeddings: np.ndarray, labels: np.ndarray, block: int) -> "Pairs":
        """The pairs of images in any order with any labels."""
        labels = np.unique_inverse(labels).inverse_indices
        order = np.argsort(labels, kind="stable")
        return cls(np.asarray(embeddings, np.float32)[order], labels[order].astype(np.int32), min(block, len(labels)))

    @property
    def identities(self) -> int:
        return int(self.labels[-1]) + 1

    @cached_property
    def genuine(self) -> np.ndarray:
        """int64 `[identities]`: the pairs of images of each identity."""
        images = np.bincount(self.labels).astype(np.int64)
        return images * (images - 1) // 2

    @property
    def impostors(self) -> int:
        """The number of pairs of images of two identities."""
        count = len(self.labels)
        return count * (count - 1) // 2 - int(self.genuine.sum())

    @cached_property
    def _blocks(self) -> list[tuple[Array, Array, int]]:
        """(embeddings `[block, D]`, labels `[block]`, number of the first), on the device; the last is filled up."""
        missing = -len(self.labels) % self.block
        embeddings = np.pad(self.embeddings, ((0, missing), (0, 0)))
        labels = np.pad(self.labels, (0, missing), mode="edge")
        starts = range(0, len(labels), self.block)
        return [(jnp.asarray(embeddings[a:][: self.block]), jnp.asarray(labels[a:][: self.block]), a) for a in starts]

    def blocks(self, *, genuine: bool) -> Iterator[tuple[int, Array, Array]]:
        """The blocks of the upper triangle, and of `genuine` pairs only those that can have any.

        Yields:
          (label of the first row, `_order` of the similarities `[block, block]`, the label of each row `[block, 1]`
          where the pair is wanted, and −1 elsewhere).
        """
        for i, (rows, row_labels, row) in enumerate(self._blocks):
            for columns, column_labels, column in self._blocks[i:]:
                if genuine and self.labels[column] > self.labels[min(row + self.block, len(self.labels)) - 1]:
                    break
                wanted = _wanted(row_labels, column_labels, row, column, len(self.labels), genuine)
                yield int(self.labels[row]), _order(rows, columns), wanted

    def impostors_at(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The impostor pairs at some ranks.

        Args:
          ranks: int `[R]`, counted from 1, the most similar pair.

        Returns:
          Their similarity, as `ordered` numbers uint32 `[R]`, and how many pairs are more similar, int64 `[R]`.
        """
        found, above = np.zeros(len(ranks), np.uint32), np.zeros(len(ranks), np.int64)
        left = _WORD
        while left:
            bits = min(_DIGIT, left)
            left -= bits
            heads = np.unique(found)
            padded = np.pad(heads, (0, len(ranks) - len(heads)), constant_values=_LARGEST)
            counts = np.zeros((len(ranks), 2**_DIGIT), np.int64)
            for _, ordered, wanted in self.blocks(genuine=False):
                counts += _digits(ordered, wanted, padded, np.uint32(left), np.uint32(bits))
            # Of those with the same first digits, how many have a larger digit than each.
            larger = counts[:, ::-1].cumsum(1)[:, ::-1] - counts
            for r, head in enumerate(np.searchsorted(heads, found)):
                beyond = above[r] + larger[head]
                digit = int(np.argmax(beyond < ranks[r]))
                found[r], above[r] = (found[r] << np.uint32(bits)) | np.uint32(digit), beyond[digit]
        return found, above

    def genuine_above(self, thresholds: np.ndarray) -> np.ndarray:
        """How many genuine pairs of each identity are more similar than each threshold, int64 `[identities, T]`.

        Args:
          thresholds: ordered numbers, uint32 `[T]`, in any order.
        """
        rising, place = np.unique(thresholds, return_inverse=True)
        counts = np.zeros((self.identities + self.block, len(rising) + 1), np.int64)
        for first, ordered, wanted in self.blocks(genuine=True):
            counts[first : first + self.block] += _steps(ordered, wanted, np.int32(first), rising)
        above = counts[: self.identities, ::-1].cumsum(1)[:, ::-1]
        return above[:, 1:][:, place]


@jax.jit
def _order(rows: Array, columns: Array) -> Array:
    """The inner products, as uint32 that are ordered as they are; one program for all uses, so that ties stay ties."""
    products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    bits = jax.lax.bitcast_convert_type(jnp.where(products == 0, 0.0, products), jnp.uint32)  # there is a zero below 0
    return jnp.where(bits >> 31 > 0, ~bits, bits | jnp.uint32(1 << 31))


def similarities(ordered: np.ndarray) -> np.ndarray:
    """float32 of what `_order` gives, for arrays on the host."""
    ordered = np.asarray(ordered, np.uint32)
    return np.where(ordered >> 31 > 0, ordered & np.uint32(2**31 - 1), ~ordered).astype(np.uint32).view(np.float32)


@jax.jit
def _wanted(
    row_labels: Array, column_labels: Array, row: ArrayLike, column: ArrayLike, count: ArrayLike, genuine: ArrayLike
) -> Array:
    """int32 `[block, block]`: the label of the row, or −1 where a pair is on or below the diagonal, beyond the last
    image, or not of the kind that is wanted."""
    numbers = jnp.arange(len(row_labels))
    rows, columns = row + numbers[:, None], column + numbers
    is_pair = (rows < columns) & (columns < count) & ((row_labels[:, None] == column_labels) == genuine)
    return jnp.where(is_pair, row_labels[:, None], -1)


@jax.jit
def _digits(ordered: Array, wanted: Array, heads: Array, shift: Array, bits: Array) -> Array:
    """How often each digit follows each of the first parts `heads`: int32 `[len(heads), 2**_DIGIT]`.

    The digit is the `bits` bits above the last `shift` ones.
    """
    head = jax.lax.shift_right_logical(ordered, jnp.broadcast_to(shift + bits, ordered.shape))  # 0 of a shift by all
    slot = jnp.searchsorted(heads, head, method="scan_unrolled")
    known = heads.at[slot].get(mode="clip") == head
    digit = (ordered >> shift) & ((jnp.uint32(1) << bits) - 1)
    shape = len(heads), 2**_DIGIT
    nowhere = shape[0] * shape[1]  # is dropped
    place = jnp.where(known & (wanted >= 0), slot * shape[1] + digit.astype(jnp.int32), nowhere)
    return jnp.zeros(nowhere, jnp.int32).at[place.ravel()].add(1, mode="drop").reshape(shape)


@jax.jit
def _steps(ordered: Array, wanted: Array, first: Array, rising: Array) -> Array:
    """How many pairs of each row's label, counted from `first`, are above how many of the thresholds `rising`:
    int32 `[block, len(rising) + 1]`."""
    passed = jnp.searchsorted(rising, ordered, method="scan_unrolled")
    shape = len(ordered), len(rising) + 1
    nowhere = shape[0] * shape[1]
    place = jnp.where(wanted >= 0, (wanted - first) * shape[1] + passed.astype(jnp.int32), nowhere)
    return jnp.zeros(nowhere, jnp.int32).at[place.ravel()].add(1, mode="drop").reshape(shape)
