"""What the rest of the code knows of a network: how to build it, where to tap it, what images it expects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """One entry of the zoo.

    Attributes:
      build: (number of classes, compute dtype) to the module.
      image_size: side of the square input in pixels.
      resize: side to which an image is resized before the crop of `image_size`.
      taps: the layers that are aligned, by how many of them there are.
      head: name of the classification layer, the only one made new for a target.
      mean, std: channel-wise normalisation of images scaled to [0, 1].
      weights: published weights, by name, as URLs.
    """

    build: Callable[[int, Any], nn.Module]
    image_size: int
    resize: int
    taps: Mapping[int, tuple[str, ...]]
    head: str = "fc"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights: Mapping[str, str] = field(default_factory=dict)
