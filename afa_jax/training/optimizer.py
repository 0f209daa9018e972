"""SGD with momentum over three groups of parameters: backbone, head and attention."""

from collections.abc import Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from afa_jax import trees
from afa_jax.transfer.method import SOURCE_HEAD
from afa_jax.transfer.recipes import Stage
from afa_jax.types import PyTree


@dataclass(frozen=True)
class Sgd:
    """What the optimizer takes from the config; rates are multiples of the stage's learning rate."""

    momentum: float = 0.9
    head_rate: float = 1.0
    attention_rate: float = 1.0


def schedule(stage: Stage) -> optax.Schedule:
    """The stage's learning rate by step: it drops once (AFA §5.2), or falls steadily through the same point."""
    if stage.schedule == "exponential":
        return optax.exponential_decay(stage.learning_rate, max(stage.drop_at, 1), stage.drop)
    return optax.piecewise_constant_schedule(stage.learning_rate, {stage.drop_at: stage.drop})


def make_optimizer(stage: Stage, head: str, sgd: Sgd) -> optax.GradientTransformation:
    """SGD as PyTorch writes it: v ← momentum·v + g + weight_decay·w, w ← w − rate·v; no decay on the attention.

    The backbone of a method that trains the head alone stays as it is.

    Args:
      head: path of the classification layer in the target's parameters.
    """
    rate = schedule(stage)

    def group(multiple: float, weight_decay: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(lambda step: multiple * jnp.asarray(rate(step)), momentum=sgd.momentum),
        )

    decay = stage.settings["weight_decay"]
    groups: dict[Hashable, optax.GradientTransformation] = {
        "backbone": optax.set_to_zero() if stage.method.head_only else group(1.0, decay),
        "head": group(sgd.head_rate, decay),
        "attention": group(sgd.attention_rate, 0.0),
    }

    def labels(params: PyTree) -> PyTree:
        target = jax.tree.map(lambda _: "backbone", params["target"])
        target = trees.put(target, head, jax.tree.map(lambda _: "head", trees.get(target, head)))
        own = {
            name: jax.tree.map(lambda _, group=("head" if name == SOURCE_HEAD else "attention"): group, tree)
            for name, tree in params["attention"].items()
        }
        return {"target": target, "attention": own}

    return optax.partition(groups, labels)
