"""Network Dissection: which units are detectors of which concepts (Bau et al., CVPR 2017; DELTA Table 4)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from afa_jax.analysis.concepts import UNLABELLED, Concept, Masked, Resized
from afa_jax.analysis.quantiles import Histogram
from afa_jax.analysis.trained import Net, watch
from afa_jax.data.augment import Preprocess
from afa_jax.data.dataset import Split

TOP_SHARE = 0.005
"""A unit is active where it is above its T with P(a > T) = 0.005."""
LEAST_IOU = 0.04
"""From which intersection over union on a unit is a detector."""
_TOGETHER = 64  # units whose maps are upsampled at once


class Counts(NamedTuple):
    """Numbers of pixels over all photos; K units, C concepts."""

    intersection: np.ndarray
    """`[K, C]`, where the unit is active on the concept."""
    active: np.ndarray
    """`[K, C]`, where the unit is active in photos that have anything of the concept's category."""
    area: np.ndarray
    """`[C]`, where the concept is."""

    @property
    def iou(self) -> np.ndarray:
        """`[K, C]`; 0 for a concept that no photo shows."""
        union = self.active + self.area - self.intersection
        return self.intersection / np.maximum(union, 1)


def thresholds(net: Net, preprocess: Preprocess, photos: Split, layer: str) -> np.ndarray:
    """T of each unit with P(a > T) = 0.005 over every position of the unit's maps of all photos: `[K]`.

    As Bau et al. have it, of the maps before they are upsampled; by `Histogram`, so to a bin's width.
    """
    histogram: Histogram | None = None
    for outputs in watch(net, preprocess, photos, (layer,)):
        values = outputs.features[layer].reshape(-1, outputs.features[layer].shape[-1])
        histogram = histogram or Histogram(values.shape[1])
        histogram.add(values)
    assert histogram is not None
    return histogram.exceeded_by(TOP_SHARE)


@partial(jax.jit, static_argnames=("present",))
def _count(maps: Array, least: Array, ranks: Array, present: int) -> tuple[Array, Array, Array]:
    """(active pixels `[K]`, those on each concept `[K, present]`, pixels of each concept `[present]`) of one photo.

    Args:
      maps: `[h, w, K]`; they are upsampled bilinearly to the masks.
      least: `[K]`, above which a unit is active.
      ranks: int `[L, H, W]`, the masks with the concepts numbered from 0; others mean nothing.
      present: how many numbers there are.
    """
    size = ranks.shape[1:]
    on = jnp.minimum(jax.nn.one_hot(ranks, present).sum(0), 1).reshape(-1, present)

    def look(unit: tuple[Array, Array]) -> tuple[Array, Array]:
        active = (jax.image.resize(unit[0], size, "bilinear") > unit[1]).astype(jnp.float32).ravel()
        return active.sum(), active @ on  # zeros and ones, of which float32 counts 16 million exactly

    active, hits = jax.lax.map(look, (jnp.moveaxis(maps, -1, 0), least), batch_size=_TOGETHER)
    return active, hits, on.sum(0)


def count(net: Net, preprocess: Preprocess, masked: Masked, photos: Split, layer: str, least: np.ndarray) -> Counts:
    """Where units that are above `least` coincide with concepts, photo by photo.

    A concept's sums leave out the photos in which nothing of its category is labelled, as Bau et al. do, for there
    nobody has looked. Where every photo has labels of every category, they are sums over the whole set.
    """
    indices = sorted(masked.concepts)
    place = np.full(max(indices) + 1, -1)
    place[indices] = np.arange(len(indices))
    categories = np.array([masked.concepts[i].category for i in indices])
    units, number = len(least), len(indices)
    made = Counts(np.zeros((units, number)), np.zeros((units, number)), np.zeros(number))
    limits, i = jnp.asarray(least, jnp.float32), 0
    for outputs in watch(net, preprocess, photos, (layer,)):
        for maps in outputs.features[layer]:
            labels = masked.labels(i, preprocess.size)
            i += 1
            found = np.setdiff1d(labels, [UNLABELLED])
            if not len(found):
                continue
            ranks = np.full(place.shape, -1)
            ranks[found] = np.arange(len(found))
            # A power of two, so that few programs are compiled for photos with different numbers of concepts.
            present = max(4, 1 << (len(found) - 1).bit_length())
            active, hits, area = (np.asarray(x) for x in _count(maps, limits, ranks[labels], present))
            columns = place[found]
            made.intersection[:, columns] += hits[:, : len(found)]
            made.area[columns] += area[: len(found)]
            same = np.isin(categories, categories[columns])
            made.active[:, same] += active[:, None]
    return made


def detectors(iou: np.ndarray, concepts: Sequence[Concept]) -> dict[str, Any]:
    """The units whose best concept reaches an IoU above 0.04, and how many different concepts of each category they
    detect (the "unique detectors" of DELTA Table 4).

    Args:
      iou: `[K, C]`.
      concepts: in the order of its columns.
    """
    best = iou.argmax(1)
    units = [
        {"unit": unit, "concept": concepts[c].name, "category": concepts[c].category, "iou": float(iou[unit, c])}
        for unit, c in enumerate(best.tolist())
        if iou[unit, c] > LEAST_IOU
    ]
    unique = {(unit["concept"], unit["category"]) for unit in units}
    categories = dict.fromkeys(concept.category for concept in concepts)
    counts = {category: sum(of == category for _, of in unique) for category in categories}
    return {"detectors": counts, "units": units}


def dissect(nets: Mapping[str, Net], preprocess: Preprocess, masked: Masked, layer: str) -> dict[str, Any]:
    """What `dissection.json` holds, of each network by its name.

    The photos are resized whole to what the network sees, so that no labelled pixel is cropped away. They pass through
    each network twice: once for the thresholds, once for the counts. Memory holds a batch's maps, 4,096 counts a unit,
    and three numbers for each unit and concept.
    """
    photos = Split(Resized(masked.files, preprocess.size), np.zeros(len(masked.files), np.int32))
    concepts = [masked.concepts[i] for i in sorted(masked.concepts)]
    told: dict[str, Any] = {"layer": layer, "threshold": LEAST_IOU}
    for name, net in nets.items():
        least = thresholds(net, preprocess, photos, layer)
        told[name] = detectors(count(net, preprocess, masked, photos, layer, least).iou, concepts)
    return told
