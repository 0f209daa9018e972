"""The few types that every layer shares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax import Array

PyTree = Any
Batch = Mapping[str, Any]
"""Arrays with one row an example: `image` uint8 `[B, S, S, 3]`, `label` int32 `[B]`, and `index` int32 `[B]`, its place
in the training split. `source` may hold a batch of the source task."""
Variables = Mapping[str, PyTree]
"""What a Flax module applies: `{"params": …, "batch_stats": …}`."""


class Outputs(NamedTuple):
    """What one forward pass of a network gives."""

    logits: Array
    """float32 `[B, num_classes]`."""
    features: dict[str, Array]
    """The output of each tapped layer by its path; a feature map is `[B, H, W, C]`."""
    batch_stats: PyTree
    """BatchNorm's running statistics: updated in train mode, as given otherwise."""
