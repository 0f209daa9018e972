"""What a stage minimises: cross-entropy + alpha·Ω + beta·½·‖head‖² (AFA eq. 4), its parts, and who looks at what."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import optax
from flax.core import FrozenDict
from jax import Array

from afa_jax import trees
from afa_jax.batch_axis import BatchAxis
from afa_jax.data.augment import Preprocess
from afa_jax.models import winograd, zoo
from afa_jax.models.cosine import cosine_logits
from afa_jax.training.identification import SOFTMAX, Loss, arcface_logits
from afa_jax.training.optimizer import Sgd
from afa_jax.transfer.method import EMBEDDING, Anatomy, Classify, Context, Frozen, Need, linear
from afa_jax.transfer.recipes import Stage
from afa_jax.types import Outputs, PyTree, Variables

HEAD_INPUT = "head_input"
"""Under this name `Outputs.features` has what the classification layer takes in, behind dropout."""


@dataclass(frozen=True)
class Task:
    """What one compiled step depends on besides its arguments.

    Attributes:
      target, teacher: the networks; they differ in the size of their heads only.
      anatomy: of both.
      accumulate: into how many parts a batch is cut, of which one after the other is on the device.
      remat: compute in the backward pass anew what is cheap, in place of keeping it.
      loss: the cross-entropy of the target's classes; the networks are made for it.
    """

    target: nn.Module
    teacher: nn.Module
    anatomy: Anatomy
    stage: Stage
    preprocess: Preprocess
    sgd: Sgd
    accumulate: int = 1
    remat: bool = False
    loss: Loss = SOFTMAX

    @property
    def classify(self) -> Classify:
        """How a classification layer is read."""
        if self.loss.by_angle:
            return lambda embedding, head: cosine_logits(embedding, head["kernel"], self.loss.scale)
        return linear


def unweighted(task: Task) -> Task:
    """The task without its alpha and beta, which are then arguments: one compilation serves them all."""
    settings = FrozenDict({**task.stage.settings, "alpha": 0.0, "beta": 0.0})
    return replace(task, stage=replace(task.stage, settings=settings))


def teach(task: Task, frozen: Frozen, images: Array) -> Outputs | None:
    """The frozen network's outputs. In a compiled step, all behind the last tap is dropped unless it is used."""
    if Need.TEACHER_FEATURES not in task.stage.method.needs:
        return None
    assert frozen.teacher is not None
    return jax.lax.stop_gradient(zoo.forward(task.teacher, frozen.teacher, images, taps=task.stage.taps))


def look(task: Task, axis: BatchAxis, variables: Variables, images: Array, key: Array) -> Outputs:
    """The target's outputs in a step: features at the taps, and what the method and the loss need of the embedding."""
    method, embedding = task.stage.method, f"{task.anatomy.embedding}{zoo.INPUT}"
    taps = task.stage.taps if Need.TEACHER_FEATURES in method.needs else ()
    named = {EMBEDDING: embedding} if Need.EMBEDDING in method.needs else {}
    named |= {HEAD_INPUT: f"{task.anatomy.head}{zoo.INPUT}"} if task.loss.by_angle else {}
    wanted, train = tuple(dict.fromkeys((*taps, *named.values()))), not method.head_only

    def run(variables: Variables, images: Array, key: Array) -> Outputs:
        return zoo.forward(task.target, variables, images, taps=wanted, train=train, rngs={"dropout": key}, axis=axis)

    outputs = (jax.checkpoint(run, policy=is_costly) if task.remat else run)(variables, images, key)
    features = outputs.features
    return outputs._replace(features={**features, **{name: features[tap] for name, tap in named.items()}})


_is_winograds_output = jax.checkpoint_policies.save_only_these_names(winograd.OUTPUT)


def is_costly(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """What the backward pass does not compute anew: convolutions and products. BatchNorm and ReLU are cheap.

    The products of a convolution by Winograd's way are up to three times its output, and dropped because that is kept.
    """
    if primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p):
        return True
    return bool(_is_winograds_output(primitive, *arguments, **parameters))


def cross_entropies(task: Task, target: Outputs, params: PyTree, labels: Array) -> Array:
    """The loss of each image, `[B]`.

    Args:
      target: as `look` gives it.
      params: the target's.
    """
    logits, loss = target.logits, task.loss
    if loss.by_angle:
        kernel = trees.get(params, task.anatomy.head)["kernel"]
        logits = arcface_logits(target.features[HEAD_INPUT], kernel, labels, loss.scale, loss.margin)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def penalties(task: Task, context: Context, images: int) -> dict[str, Array]:
    """The parts of Ω, `alignment/<name>`, unweighted: `[B]`, one value an image, or a scalar.

    Args:
      images: in the whole batch, over which some conventions take a sum where the cross-entropy is a mean.
    """
    summed = task.stage.settings["convention"] in task.stage.method.batch_sum
    scale = images if summed else 1
    return {f"alignment/{name}": scale * term for name, term in task.stage.method.penalty(context).items()}


def head_penalty(task: Task, params: PyTree) -> Array:
    """½·‖head‖², kernel and bias, of the target's parameters."""
    return 0.5 * optax.tree.norm(trees.get(params, task.anatomy.head), squared=True)


def total(settings: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """What is minimised, from its parts.

    Args:
      settings: with `alpha` and `beta`.
      parts: with `cross_entropy`, `alignment` and `head_penalty`.
    """
    return parts["cross_entropy"] + settings["alpha"] * parts["alignment"] + settings["beta"] * parts["head_penalty"]


def hold_backbone(params: PyTree, anatomy: Anatomy) -> PyTree:
    """The target's parameters, of which only the heads let a gradient through; its backward pass then ends there."""
    held = jax.lax.stop_gradient(params)
    for head in anatomy.heads:
        held = trees.put(held, head, trees.get(params, head))
    return held
