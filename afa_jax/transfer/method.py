"""What a method is: what is added to the cross-entropy, as a record that the training step need not know by name.

A stage minimises, over the target's parameters and the method's own (AFA eq. 4),

    mean over the batch of cross-entropy + alpha·Ω + beta·½·‖head‖²  (+ weight decay in the optimizer).

A method says what Ω is, what it looks at, and what must be measured before the stage. The records are in `methods/`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jax import Array

from afa_jax.batch_axis import WHOLE, BatchAxis
from afa_jax.types import Batch, Outputs, PyTree, Variables

EMBEDDING = "embedding"
"""Under this name `Outputs.features` has what the network makes of an image before dropout and head, `[B, D]`."""


SOURCE_HEAD = "source_head"
"""Under this name a method's own parameters have the source network's classification layer."""


class Frozen(struct.PyTreeNode):
    """What no step of a stage changes."""

    teacher: Variables | None = None
    constants: dict[str, PyTree] = struct.field(default_factory=dict)
    """What `Method.prepare` measured before the stage."""


@dataclass(frozen=True)
class Anatomy:
    """Where things are in a network's parameters.

    Attributes:
      head: path of the classification layer.
      heads: of all layers that are as wide as there are classes.
      embedding: of the layer that takes in the embedding: the head, or the dropout before it.
      filters: for a tapped layer that is no convolution itself, the convolutions whose outputs, one after the other,
        are its channels.
    """

    head: str
    heads: tuple[str, ...]
    embedding: str
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=FrozenDict)

    def filters_of(self, tap: str) -> tuple[str, ...]:
        """The convolutions that make the channels of `tap`, in order; channels beyond theirs have none."""
        return self.filters.get(tap, (tap,))


Classify = Callable[[Array, Mapping[str, Array]], Array]
"""From an embedding `[B, D]` and a classification layer, `kernel` `[D, K]` and `bias` `[K]`, to float32 `[B, K]`."""


def linear(embedding: Array, head: Mapping[str, Array]) -> Array:
    """x·W + b."""
    return embedding.astype(jnp.float32) @ head["kernel"] + head["bias"]


class Context(NamedTuple):
    """All that a penalty may look at. What it leaves alone is never computed: the compiler drops it."""

    params: Mapping[str, PyTree]
    """`{"target": …, "attention": …}`; the second are the method's own."""
    target: Outputs
    teacher: Outputs | None
    frozen: Frozen
    batch: Batch
    progress: Array
    """The share of the stage that is done, in [0, 1)."""
    settings: Mapping[str, Any]
    """The method's settings from the config, and `convention`."""
    anatomy: Anatomy
    source: Outputs | None = None
    """The target network on the images `batch["source"]` of the source task, in train mode."""
    classify: Classify = linear
    """How a classification layer is read."""
    axis: BatchAxis = WHOLE
    """Over which the batch is spread, for a penalty that is not a mean over its images."""


class Need(Enum):
    """What a method cannot do without."""

    TEACHER_FEATURES = "the teacher's features at the taps"
    TAPS = "the names of the taps"
    EMBEDDING = "what the target makes of an image, before dropout and head"
    SOURCE_HEAD = "the source network's classification layer"
    SOURCE_BATCHES = "images and labels of the source task"


Features = Mapping[str, Array]
Penalty = Callable[[Context], dict[str, Array]]


class Start(NamedTuple):
    """What a method's own parameters may start from."""

    features: Features
    """Zeros of the shapes of the teacher's at the taps, `[1, H, W, C]`."""
    source_head: Mapping[str, Array]
    """`kernel` `[D, K]` and `bias` `[K]` of the source network."""


class Survey(NamedTuple):
    """What `Method.prepare` may use, once before a stage."""

    settings: Mapping[str, Any]
    taps: tuple[str, ...]
    labels: Array
    """int32 `[N]`, of all training images."""
    teacher: Callable[[], Iterator[Outputs]]
    """The teacher on every training image in order, in batches: features at the taps, and logits."""
    attention: PyTree
    """The own parameters of that stage's method."""
    loss_increases: Callable[[], Mapping[str, Array]]
    """For each tap `[C]`: by how much the cross-entropy of what an earlier stage trained rises without a filter."""
    tell: Callable[[str], None]
    """Is given a sentence before what may take minutes."""


def no_penalty(context: Context) -> dict[str, Array]:
    """Ω = 0."""
    return {}


def no_parameters(key: Array, start: Start) -> PyTree:
    """A method without parameters of its own."""
    return {}


def no_constants(survey: Survey) -> dict[str, PyTree]:
    """Nothing to be measured."""
    return {}


@dataclass(frozen=True)
class Method:
    """What is added to the cross-entropy.

    Attributes:
      name: as configs and recipes call it.
      penalty: named, unweighted parts of Ω: `[B]`, one value an example, or a scalar, such as a penalty on weights.
      init: the method's own parameters.
      prepare: what must be measured once before the stage; it becomes `Frozen.constants`.
      first: a method that must have run, and is thrown away, for `prepare` to measure what it trained.
      needs: what the experiment must offer.
      head_only: the backbone stays as it is and runs in eval mode.
      batch_sum: the conventions under which Ω is summed over the batch, where the cross-entropy is a mean.
      settings: its settings and their defaults. Each method has `alpha`, the weight of Ω; `beta`, the weight of
        ½·‖head‖² (kernel and bias); and `weight_decay`, added to the gradient of every parameter that learns, but the
        attentive modules'. Numbers must not be negative.
      least: settings that have a larger least value.
    """

    name: str
    penalty: Penalty = no_penalty
    init: Callable[[Array, Start], PyTree] = no_parameters
    prepare: Callable[[Survey], dict[str, PyTree]] = no_constants
    first: str | None = None
    needs: frozenset[Need] = frozenset()
    head_only: bool = False
    batch_sum: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"alpha": 0.0, "beta": 0.01, "weight_decay": 0.0}, hash=False
    )
    least: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def has_taps(self) -> bool:
        return bool(self.needs & {Need.TEACHER_FEATURES, Need.TAPS})

    @property
    def has_test_penalty(self) -> bool:
        """Ω can be had of images that are not trained on: it looks at nothing but features and weights."""
        return self.needs <= {Need.TEACHER_FEATURES, Need.TAPS}
