"""How far each convolution filter has moved from where the target began (DELTA §4.4, Fig. 5)."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from afa_jax.analysis.trained import TrainedRun
from afa_jax.models import zoo
from afa_jax.types import PyTree

FEW = 8
"""A network of at most so many parts is grouped by them."""


def filter_distances(start: PyTree, end: PyTree) -> dict[str, np.ndarray]:
    """‖W_c − W⁰_c‖ of each filter, by the path of its convolution: `[O]` each.

    A kernel is `[h, w, in, out]`; the filter c is its slice along the last axis, flattened. BatchNorm, the head and
    other matrices are no filters and are left out; the convolutions of shortcuts are counted.

    Args:
      start, end: parameters of the same network.
    """
    before: dict[str, Any] = flatten_dict(dict(start), sep=".")
    after: dict[str, Any] = flatten_dict(dict(end), sep=".")
    kernels = [path for path, leaf in after.items() if path.endswith(".kernel") and leaf.ndim == 4]
    moved = {path: np.asarray(after[path], np.float64) - np.asarray(before[path], np.float64) for path in kernels}
    return {path.removesuffix(".kernel"): np.sqrt(np.square(d).sum((0, 1, 2))) for path, d in moved.items()}


def stages(convolutions: Sequence[str], resolution: Mapping[str, int]) -> dict[str, str]:
    """The stage of the network to which each convolution belongs, in the network's order.

    The parts of a network are the first words of its layers' paths, or the first two where all share the first
    (MobileNetV2's `features`). Up to eight parts are stages themselves: `conv1`, `layer1` to `layer4` of a ResNet, of
    which the paper calls the last four conv2_x to conv5_x. Of more, those that follow each other with feature maps of
    one size make a stage: `features.4–6` of MobileNetV2, `Mixed_5b–Mixed_5d` of Inception-V3. A part that has no size,
    because it is not in use at test time (Inception's auxiliary head), comes last by itself.

    Args:
      convolutions: their paths.
      resolution: the side of the feature map that a layer puts out, by its path.
    """
    depth = 1 if len({path.split(".")[0] for path in convolutions}) > 1 else 2
    part = {path: ".".join(path.split(".")[:depth]) for path in convolutions}
    order = sorted(set(part.values()), key=lambda name: (-resolution.get(name, 0), _natural(name)))
    if len(order) > FEW:
        runs = [list(same) for _, same in groupby(order, lambda name: resolution.get(name, 0))]
        named = {name: _span(run) for run in runs for name in run}
    else:
        named = {name: name for name in order}
    place = {name: i for i, name in enumerate(order)}
    return {path: named[part[path]] for path in sorted(convolutions, key=lambda path: place[part[path]])}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `features.10` behind `features.9`."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _span(names: Sequence[str]) -> str:
    """`features.4–6`, `Mixed_5b–Mixed_5d`, or the one name."""
    if len(names) == 1:
        return names[0]
    before, dot, _ = names[0].rpartition(".")
    return f"{names[0]}–{names[-1].removeprefix(before + dot)}"


def distances(run: TrainedRun) -> dict[str, Any]:
    """The distances of all filters, by the stage of the network; what `filter_distances.json` holds.

    Returns:
      `{"stages": {name: {"filters": n, "quantiles": the 0, 1, …, 100 % quantiles}}}`.
    """
    moved = filter_distances(run.start.variables["params"], run.target.variables["params"])
    shapes = zoo.layer_shapes(run.target.module, run.size)
    resolution = {layer: shape[1] for layer, shape in shapes.items() if len(shape) == 4}
    groups: dict[str, list[np.ndarray]] = {}
    for path, stage in stages(list(moved), resolution).items():
        groups.setdefault(stage, []).append(moved[path])
    told = {}
    for stage, parts in groups.items():
        values = np.concatenate(parts)
        told[stage] = {"filters": len(values), "quantiles": np.quantile(values, np.linspace(0, 1, 101)).tolist()}
    return {"stages": told}
