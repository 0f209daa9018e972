"""How strongly a network is activated at the parts of birds (DELTA Table 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afa_jax.analysis.activations import normalise
from afa_jax.analysis.trained import Net, TrainedRun, watch
from afa_jax.errors import UserError

NAMES = (
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)
"""The parts of CUB-200-2011 in the order of its `parts.txt`."""


def on_crop(points: np.ndarray, sizes: np.ndarray, form: str, resize: int, crop: int) -> np.ndarray:
    """Where the points of images are after these are resized and their middle is cropped.

    Pillow's resize carries the middle of a pixel, x, to (x + ½)·scale − ½.

    Args:
      points: `[N, K, 2]`, x and y in pixels of the original image.
      sizes: `[N, 2]`, width and height of it.
      form: `square`: both sides are resized to `resize`; `whole`: the short side is. As `data.images.resize` does.
      crop: the side of the crop.

    Returns:
      `[N, K, 2]`, x and y in pixels of the crop; outside [−½, crop − ½) where the point is cut off.
    """
    if form == "square":
        after = np.full_like(sizes, resize)
    else:
        after = (resize * sizes / sizes.min(1, keepdims=True)).astype(int)
    margin = np.array([[round((side - crop) / 2) for side in pair] for pair in after.tolist()])
    return (points + 0.5) * (after / sizes)[:, None] - 0.5 - margin[:, None]


def at(maps: np.ndarray, points: np.ndarray, crop: int) -> np.ndarray:
    """Maps that are resized bilinearly to the crop, at points of it; nothing larger than the maps is made.

    Args:
      maps: `[N, H, W, C]`.
      points: `[N, K, 2]`, x and y in pixels of the crop, whose side is `crop`.

    Returns:
      `[N, K, C]`.
    """
    height, width = maps.shape[1:3]
    places = (points + 0.5) * (np.array([width, height]) / crop) - 0.5
    x, y = np.clip(places, 0, [width - 1, height - 1]).transpose(2, 0, 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    image = np.arange(len(maps))[:, None]
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = (1 - across) * maps[image, top, left] + across * maps[image, top, right]
    lower = (1 - across) * maps[image, bottom, left] + across * maps[image, bottom, right]
    return (1 - down) * upper + down * lower


def part_activations(run: TrainedRun, net: Net, layer: str) -> dict[str, Any]:
    """The mean normalised activation at each part, over the channels of `layer` and the test images that show it.

    Each map is brought to [0, 1] as in DELTA §4.4, resized to what the network sees, and read at the part's pixel.
    Parts that are invisible or outside the centre crop are not counted.

    Returns:
      `parts`: for each that any image shows its `mean` and `count` of images; `mean` of all points, in [0, 1]; `sum`
      of the parts' means. The paper's figures, 5.298 and the like, say neither whether they are a mean or a sum
      nor over what: as sums over 15 parts they would be means of 0.35 to 0.42.

    Raises:
      UserError: the data set says nothing of parts, or no image shows any.
    """
    extras = run.test.extras
    if "parts" not in extras:
        raise UserError(f"{run.experiment.data.name} says nothing of parts; cub200_2011 does.")
    form = {"default": "square", "improved": "whole"}[run.experiment.data.augmentation]
    known = np.asarray(extras["parts"], np.float64)
    points = on_crop(known[..., :2], extras["original_size"], form, run.resize, run.size)
    inside = ((points >= -0.5) & (points < run.size - 0.5)).all(-1)
    counted = (known[..., 2] > 0) & inside
    totals, begin = np.zeros(known.shape[1]), 0
    for outputs in watch(net, run.preprocess, run.test, (layer,)):
        maps = normalise(outputs.features[layer])
        rows = slice(begin, begin + len(maps))
        values = at(maps, points[rows], run.size).mean(-1)
        totals += np.where(counted[rows], values, 0).sum(0)
        begin = rows.stop
    return summary(totals, counted.sum(0))


def summary(totals: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """`mean`, `sum` and `parts` from the sums and counts of each part.

    Raises:
      UserError: nothing was counted.
    """
    if not counts.any():
        raise UserError("No test image shows any part within its centre crop.")
    parts: Mapping[str, dict[str, Any]] = {
        name: {"mean": float(total / count), "count": int(count)}
        for name, total, count in zip(NAMES, totals, counts, strict=True)
        if count
    }
    means = [part["mean"] for part in parts.values()]
    return {"mean": float(totals.sum() / counts.sum()), "sum": sum(means), "parts": parts}
