"""Top-1 accuracy and cross-entropy over a whole split, exact for every batch size."""

import math
from collections.abc import Callable
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from afa_jax.data.augment import Preprocess, normalise
from afa_jax.data.batches import test_batches
from afa_jax.data.dataset import Split
from afa_jax.models.zoo import forward
from afa_jax.training.parallel import Devices
from afa_jax.types import Batch, Variables


@lru_cache(maxsize=8)
def _compile(module: nn.Module, preprocess: Preprocess) -> Callable[[Variables, Batch], dict[str, Array]]:
    def count(variables: Variables, batch: Batch) -> dict[str, Array]:
        # One view after the other, so that the network needs no more memory for ten crops than for one.
        def look(view: Array) -> Array:
            return forward(module, variables, normalise(view, preprocess.mean, preprocess.std)).logits

        views = preprocess.views(batch["image"])
        logits = look(views[0]) if len(views) == 1 else jax.lax.map(look, views).mean(0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = logits.argmax(-1) == batch["label"]
        # Where the batch is filled up, a mask of 0 would turn an infinite loss into NaN; `where` does not.
        return {
            "loss": jnp.where(batch["mask"] > 0, losses, 0).sum(),
            "hits": jnp.where(batch["mask"] > 0, hits, False).sum(),
        }

    return jax.jit(count)


def evaluate(
    module: nn.Module, variables: Variables, split: Split, preprocess: Preprocess, batch_size: int
) -> dict[str, float]:
    """The network alone, in eval mode, on every image of `split` once; its logits are the mean over an image's views.

    All devices of all hosts take part, each host with the images that it reads.

    Args:
      variables: on every device.
      batch_size: of all devices together; as many more as it takes for equal parts are let through and not counted.

    Returns:
      `top1` as a share in [0, 1], `loss` (mean cross-entropy) and `count`.
    """
    run, devices = _compile(module, preprocess), Devices()
    batch_size = math.ceil(batch_size / jax.device_count()) * jax.device_count()
    totals = []
    for batch in test_batches(split, batch_size, devices.part):
        totals.append(run(variables, devices.spread(batch)))
        jax.block_until_ready(totals[-2:][0])  # no more than two batches lie on the device
    loss, hits = (sum(float(total[key]) for total in totals) for key in ("loss", "hits"))
    return {"top1": hits / len(split), "loss": loss / len(split), "count": len(split)}
