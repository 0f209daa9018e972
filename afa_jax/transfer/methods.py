"""What is added to the cross-entropy: every method is one record, and the training step knows none of them by name.

A stage minimises, over the target's parameters and those of the attention (AFA eq. 4),

    mean over the batch of cross-entropy + alpha·Ω + beta·½·‖head‖²  (+ weight decay in the optimizer).

A method says what Ω is. To add one, write its penalty and its record here; its settings then appear in every config
under `methods.<name>` and its name as a one-stage recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import struct
from jax import Array

from afa_jax.transfer.attention import ChannelAttention, SpatialAttention
from afa_jax.transfer.losses import channel_alignment, direct_alignment, spatial_alignment
from afa_jax.types import Batch, Outputs, PyTree, Variables


class Frozen(struct.PyTreeNode):
    """What no step of a stage changes."""

    teacher: Variables | None = None
    constants: PyTree = struct.field(default_factory=dict)
    """What `Method.prepare` measured before the stage."""


class Context(NamedTuple):
    """All that a penalty may look at. What it leaves alone is never computed: the compiler drops it."""

    params: Mapping[str, PyTree]
    """`{"target": …, "attention": …}`."""
    target: Outputs
    teacher: Outputs | None
    frozen: Frozen
    batch: Batch
    progress: Array
    """The share of the stage that is done, in [0, 1)."""
    settings: Mapping[str, Any]
    """The method's settings from the config, and `convention`."""
    head: str
    """Path of the classification layer in the target's parameters."""


class Need(Enum):
    """What a method cannot do without."""

    TEACHER_FEATURES = "the teacher's features at the taps"
    SOURCE_HEAD = "the source network's classification layer"
    SOURCE_BATCHES = "images and labels of the source task"


Features = Mapping[str, Array]
Penalty = Callable[[Context], dict[str, Array]]


def no_penalty(context: Context) -> dict[str, Array]:
    """Ω = 0."""
    return {}


def no_parameters(key: Array, features: Features) -> PyTree:
    """A method without parameters of its own."""
    return {}


@dataclass(frozen=True)
class Method:
    """What is added to the cross-entropy.

    Attributes:
      name: as configs and recipes call it.
      penalty: named, unweighted parts of Ω: `[B]`, one value an example, or a scalar for a penalty on weights.
      init: the method's own parameters, from a key and the teacher's features of one image.
      prepare: what must be measured once before the stage, on the host; it ends in `Frozen.constants`.
      needs: what the experiment must offer.
      batch_sum: the conventions under which Ω is summed over the batch, where the cross-entropy is a mean.
      settings: its settings and their defaults. Each method has `alpha`, the weight of Ω; `beta`, the weight of
        ½·‖head‖² (kernel and bias); and `weight_decay`, added to the gradient of every parameter of the target.
    """

    name: str
    penalty: Penalty = no_penalty
    init: Callable[[Array, Features], PyTree] = no_parameters
    prepare: Callable[..., PyTree] | None = None
    needs: frozenset[Need] = frozenset()
    batch_sum: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"alpha": 0.0, "beta": 0.01, "weight_decay": 0.0}, hash=False
    )


def _direct_penalty(context: Context) -> dict[str, Array]:
    assert context.teacher is not None
    convention = context.settings["convention"]
    return {
        tap: direct_alignment(context.target.features[tap], feature, convention)
        for tap, feature in context.teacher.features.items()
    }


def _attentive(module: nn.Module, loss: Callable[..., Array]) -> dict[str, Any]:
    """Penalty and start of a method with one attentive module a tap, fed by the teacher's features."""

    def penalty(context: Context) -> dict[str, Array]:
        assert context.teacher is not None
        terms = {}
        for tap, feature in context.teacher.features.items():
            attention = module.apply({"params": context.params["attention"][tap]}, feature)
            terms[tap] = loss(context.target.features[tap], feature, attention, context.settings["convention"])
        return terms

    def init(key: Array, features: Features) -> PyTree:
        keys = dict(zip(features, jax.random.split(key, len(features)), strict=True))
        return {tap: module.init(keys[tap], feature)["params"] for tap, feature in features.items()}

    return {"penalty": penalty, "init": init}


_FEATURES = frozenset({Need.TEACHER_FEATURES})

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # Plain fine-tuning: Ω = 0, weight decay on every parameter of the target and no other penalty (AFA eq. 1).
        Method("l2", settings={"alpha": 0.0, "beta": 0.0, "weight_decay": 1e-4}),
        # Direct feature alignment: Ω = Σ_taps direct_alignment (AFA eq. 3); the released code sums it over the batch.
        Method(
            "dfa",
            _direct_penalty,
            needs=_FEATURES,
            batch_sum=frozenset({"released"}),
            settings={"alpha": 0.01, "beta": 0.01, "weight_decay": 0.0},
        ),
        # Attentive spatial transfer: Ω = Σ_taps spatial_alignment under learnt SAMs (AFA eq. 5, 6).
        Method(
            "ast",
            **_attentive(SpatialAttention(), spatial_alignment),
            needs=_FEATURES,
            settings={"alpha": 0.1, "beta": 0.01, "weight_decay": 0.0},
        ),
        # Attentive channel transfer: Ω = Σ_taps channel_alignment under learnt CAMs (AFA eq. 7, 8).
        Method(
            "act",
            **_attentive(ChannelAttention(), channel_alignment),
            needs=_FEATURES,
            settings={"alpha": 0.15, "beta": 0.01, "weight_decay": 0.0},
        ),
    )
}
