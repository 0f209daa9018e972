"""What the rest of the code knows of a network: how to build it, where to tap it, what images it expects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import flax.linen as nn

from afa_jax.initializers import torch_linear

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}
"""Mean and standard deviation a channel, by name; torchvision's `transform_input=True` is `half`."""


def _same(key: str) -> str:
    return key


@dataclass(frozen=True)
class Layout:
    """How one kind of file holds a network's arrays; without attributes, as PyTorch does with the paths of the layers.

    Attributes:
      key: from PyTorch's key here, `stage1.unit1.bn1.weight`, to the file's, `stage1_unit1_bn1_gamma`.
      matrices: PyTorch's keys of the 1×1 convolutions that the file holds as matrices.
      fills_ones: what the file says of the network's `ones` has no meaning.
      adapt: makes of the file's arrays those of the layers here, where they are not the same layers.
    """

    key: Callable[[str], str] = _same
    matrices: frozenset[str] = frozenset()
    fills_ones: bool = False
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class Network:
    """One entry of the zoo.

    Attributes:
      build: (number of classes, compute dtype) to the module.
      image_size: side of the square input in pixels.
      resize: side to which an image is resized before the crop of `image_size`.
      taps: the layers that are aligned, by how many of them there are.
      head: path of the classification layer.
      embedding: path of the layer that takes in what the network makes of an image, where dropout stands between it and
        the head; empty where the head takes it in.
      also_new: paths of further layers that are as wide as there are classes, made new with the head.
      filters: for a tap that is no convolution itself, the convolutions whose outputs, one after the other, are its
        channels; channels beyond theirs are no filter's, but a pool's.
      left_out: layers that published files hold and this network is defined without.
      layouts: of the files that can be read; weights are written for PyTorch in the first.
      ones: PyTorch's keys of BatchNorm weights that files hold and this network fixes at one.
      headless_files: published files hold no classification layer, and one without it has no classes.
      hints: by PyTorch's key of an array, what it means where a file has it in another shape.
      new_head: (number of classes, inputs) to the classification layer as it starts.
      mean, std: channel-wise normalisation of images scaled to [0, 1].
      weights: published weights, by name, as URLs.
    """

    build: Callable[[int, Any], nn.Module]
    image_size: int
    resize: int
    taps: Mapping[int, tuple[str, ...]]
    head: str = "fc"
    embedding: str = ""
    also_new: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = (Layout(),)
    ones: tuple[str, ...] = ()
    headless_files: bool = False
    hints: Mapping[str, str] = field(default_factory=dict)
    new_head: Callable[[int, int], nn.Dense] = torch_linear
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        """All layers that are made new for another number of classes."""
        return (self.head, *self.also_new)


def spread_taps(layers: Sequence[str], released: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Taps for 4, 8 and 12 attentive modules (AFA Table 11), spread evenly.

    The paper takes them "evenly" and the released code shows its four. They cut the network into four parts; 8 and 12
    take two and three layers of each part, at the ends of its halves and thirds. So the 4 are among the 8 and the 12.
    A count for which a part has too few layers is left out.

    Args:
      layers: all that can be tapped, in the order of the network.
      released: the four of the released code, each among `layers`.
    """
    ends = [0, *(layers.index(tap) + 1 for tap in released)]
    parts = [layers[begin:end] for begin, end in pairwise(ends)]
    taps = {}
    for each in (1, 2, 3):
        if all(len(part) >= each for part in parts):
            # Half a layer is rounded up, so that two of three are the second and the third.
            places = [[(2 * i * len(part) + each) // (2 * each) - 1 for i in range(1, each + 1)] for part in parts]
            taps[4 * each] = tuple(part[p] for part, ps in zip(parts, places, strict=True) for p in ps)
    return taps
