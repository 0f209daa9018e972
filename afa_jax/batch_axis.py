"""How a step sees the batch: whole, or the part of it that lies on one device."""

from dataclasses import dataclass
from typing import TypeVar

import jax
from jax import Array

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class BatchAxis:
    """The axis over which the batch is spread, inside a function that is mapped over devices.

    Where nothing is mapped the function sees the whole batch, and all here leaves things as they are: that is how one
    device works, and a batch that `jit` shards.

    Attributes:
      name: of the mapped axis; None where nothing is mapped.
    """

    name: str | None = None

    @property
    def size(self) -> int:
        """The number of parts."""
        return 1 if self.name is None else jax.lax.axis_size(self.name)

    def mean(self, tree: Tree) -> Tree:
        """The mean over the parts, which are all of one size."""
        return tree if self.name is None else jax.lax.pmean(tree, self.name)

    def whole(self, part: Array) -> Array:
        """All parts `[b, …]`, laid end to end: `[b·size, …]`."""
        return part if self.name is None else jax.lax.all_gather(part, self.name, tiled=True)

    def own(self, whole: Array) -> Array:
        """This device's part `[b, …]` of `[b·size, …]`."""
        if self.name is None:
            return whole
        length = len(whole) // self.size
        return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(self.name) * length, length)


WHOLE = BatchAxis()
"""Nothing is mapped."""
