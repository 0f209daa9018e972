"""Top-1 accuracy and losses over a whole split, exact for every batch size."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from afa_jax import compilation
from afa_jax.data.augment import Preprocess, normalise
from afa_jax.data.batches import test_batches
from afa_jax.data.dataset import Split
from afa_jax.models.zoo import forward
from afa_jax.training.objective import Task, head_penalty, penalties, teach, total, unweighted
from afa_jax.training.parallel import Devices
from afa_jax.transfer.method import Context, Frozen
from afa_jax.types import Batch, PyTree, Variables


class Aligned(NamedTuple):
    """What the total loss is made of besides the network (AFA Fig. 3): target and teacher are both in eval mode.

    Attributes:
      task: its method's penalty must be one that test images have.
      attention: the method's own parameters.
      images: in a training batch, for the conventions that take a sum over it.
    """

    task: Task
    attention: PyTree
    frozen: Frozen
    images: int


@lru_cache(maxsize=8)
def _compile(
    module: nn.Module, preprocess: Preprocess, task: Task | None, images: int
) -> Callable[[Variables, Batch, PyTree, Frozen | None], dict[str, Array]]:
    def count(variables: Variables, batch: Batch, attention: PyTree, frozen: Frozen | None) -> dict[str, Array]:
        # One view after the other, so that the network needs no more memory for ten crops than for one.
        def look(view: Array) -> tuple[Array, dict[str, Array]]:
            seen = normalise(view, preprocess.mean, preprocess.std)
            outputs = forward(module, variables, seen, taps=task.stage.taps if task else ())
            if task is None or frozen is None:
                return outputs.logits, {}
            params = {"target": variables["params"], "attention": attention}
            taught, settings = teach(task, frozen, seen), task.stage.settings
            context = Context(params, outputs, taught, frozen, batch, jnp.float32(1), settings, task.anatomy)
            terms = penalties(task, context, images)
            return outputs.logits, {**terms, "head_penalty": head_penalty(task, params["target"])}

        views, labels = preprocess.views(batch["image"]), batch["label"]
        if len(views) == 1:
            logits, terms = look(views[0])
        else:
            logits, terms = jax.tree.map(lambda x: x.mean(0), jax.lax.map(look, views))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        each = {"cross_entropy": losses, "top1": (logits.argmax(-1) == labels).astype(jnp.float32), **terms}
        # Where the batch is filled up, a mask of 0 would turn an infinite loss into NaN; `where` does not.
        return {name: jnp.where(batch["mask"] > 0, value, 0).sum() for name, value in each.items()}

    return compilation.jit(count)


def evaluate(
    module: nn.Module,
    variables: Variables,
    split: Split,
    preprocess: Preprocess,
    batch_size: int,
    aligned: Aligned | None = None,
) -> dict[str, float]:
    """The network alone, in eval mode, on every image of `split` once; its logits are the mean over an image's views.

    All devices of all hosts take part, each host with the images that it reads.

    Args:
      variables: on every device.
      batch_size: of all devices together; as many more as it takes for equal parts are let through and not counted.
      aligned: on every device; for the total loss.

    Returns:
      `top1` as a share in [0, 1], `cross_entropy` (a mean) and `count`; with `aligned` also `loss`, `alignment` and its
      parts, as in training.
    """
    task, attention, frozen, images = aligned or (None, None, None, 0)
    run, devices = _compile(module, preprocess, unweighted(task) if task else None, images), Devices()
    batch_size = math.ceil(batch_size / jax.device_count()) * jax.device_count()
    totals = []
    for batch in test_batches(split, batch_size, devices.part):
        totals.append(run(variables, devices.spread(batch), attention, frozen))
        jax.block_until_ready(totals[-2:][0])  # no more than two batches lie on the device
    values = {name: sum(float(part[name]) for part in totals) / len(split) for name in totals[0]}
    if task:
        values["alignment"] = sum(value for name, value in values.items() if name.startswith("alignment/"))
        values["loss"] = total(task.stage.settings, values)
    return {**values, "count": len(split)}
