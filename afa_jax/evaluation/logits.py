"""What a network says of images, batch by batch, as its evaluation sees them: the mean over an image's views."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from afa_jax import compilation
from afa_jax.data.augment import Preprocess, normalise
from afa_jax.models.zoo import forward
from afa_jax.training.parallel import Devices
from afa_jax.types import Variables


def mean_logits(module: nn.Module, variables: Variables, preprocess: Preprocess, images: Array) -> Array:
    """The network in eval mode on each view of the images, one view after the other.

    Args:
      images: uint8 `[B, S, S, 3]`, of which the centre crop is seen, or five crops of each, `[B, 5, size, size, 3]`.

    Returns:
      float32 `[B, classes]`.
    """

    def look(view: Array) -> Array:
        return forward(module, variables, normalise(view, preprocess.mean, preprocess.std)).logits

    views = preprocess.views(images)
    return look(views[0]) if len(views) == 1 else jax.lax.map(look, views).mean(0)


@lru_cache(maxsize=8)
def _compile(module: nn.Module, preprocess: Preprocess) -> Callable[[Variables, Array], Array]:
    return compilation.jit(lambda variables, images: mean_logits(module, variables, preprocess, images))


def logits_of(
    module: nn.Module, variables: Variables, preprocess: Preprocess, images: np.ndarray, batch_size: int
) -> np.ndarray:
    """`mean_logits` of one batch, on all devices of this host.

    Args:
      variables: on every device.
      images: `batch_size` of them or fewer; filled up to that many, so that it compiles once.
    """
    devices, count = Devices(), len(images)
    size = math.ceil(batch_size / jax.device_count()) * jax.device_count()
    filled = images[np.minimum(np.arange(size), count - 1)] if count < size else images
    batch: Any = devices.spread({"image": filled})
    return np.asarray(devices.whole(_compile(module, preprocess)(variables, batch["image"])))[:count]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 `[B, classes]`; each row sums to 1."""
    likely = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return likely / likely.sum(1, keepdims=True)
