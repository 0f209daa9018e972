"""Activation maps side by side: the source network's, then each recipe's (AFA Fig. 2, DELTA Fig. 6 and 7)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from afa_jax.errors import UserError
from afa_jax.report.analyses import ActivationMaps, Found
from afa_jax.report.figures.analysis import by_label
from afa_jax.report.figures.style import described, panels, styled

_MOST_COLUMNS = 12
_STRONG = 0.5
_SHARE = 0.6
"""Of the map in what is shown; the rest is the photo."""
_SIDE = 128
"""Longest side in pixels of a picture in the figure."""


def alike(found: Sequence[Found]) -> list[list[Found]]:
    """Those whose maps can stand side by side, of each label its first run.

    A group that would show nothing but further seeds of what larger groups show is left out.
    """
    groups: list[list[Found]] = []
    for one in found:
        for group in groups:
            if one.content.alike(group[0].content) and _task(one) == _task(group[0]):
                if one.run.label not in {other.run.label for other in group}:
                    group.append(one)
                break
        else:
            groups.append([one])
    shown: set[tuple[str, ...]] = set()
    kept = []
    for group in sorted(groups, key=len, reverse=True):
        labels = {(*_task(one), one.run.label) for one in group}
        if not labels <= shown:
            kept.append(group)
        shown |= labels
    return kept


def _task(one: Found) -> tuple[str, str]:
    return one.run.dataset, one.run.network


@styled
def activation_maps(found: Sequence[Found]) -> Figure:
    """A column a photo and channel; in the rows the photo, the map of the source network, and that of each run.

    Photos of which one row of panels has no room go into further blocks below.

    Raises:
      UserError: nothing was found, or the runs have not the same photos, layer and channels.
    """
    groups = by_label(found, "Activation maps are")
    first: ActivationMaps = found[0].content
    if not all(one.content.alike(first) for one in found):
        raise UserError("Activation maps stand side by side only for the same photos, layer and channels.")
    rows = {"source network": first.source, **{label: maps[0].target for label, maps in groups.items()}}
    photos = [_small(photo) for photo in first.photos]
    channels = len(first.channels)
    a_block = max(1, _MOST_COLUMNS // channels)
    blocks, columns = math.ceil(len(first.photos) / a_block), min(a_block, len(first.photos)) * channels
    height = len(rows) + 1
    figure, axes = panels(blocks * height, columns, width=1.15, height=1.15)
    for panel in axes.flat:
        panel.set_axis_off()
    for photo, name in enumerate(first.names):
        block, place = divmod(photo, a_block)
        for k, channel in enumerate(first.channels):
            column = axes[block * height : (block + 1) * height, place * channels + k]
            if k == 0:
                column[0].imshow(photos[photo], interpolation="none")
                column[0].set_title(name if len(name) <= 18 else f"…{name[-17:]}", fontsize=7, pad=2)
            for panel, (label, maps) in zip(column[1:], rows.items(), strict=True):
                panel.imshow(_overlaid(photos[photo], maps[photo, k]), interpolation="none")
                if place == k == 0:
                    panel.text(-0.08, 0.5, label, rotation=90, ha="right", va="center", transform=panel.transAxes)
            column[1].set_title(f"channel {channel}", fontsize=7, pad=2)
    return described(figure, _words(rows, first))


def _small(photo: np.ndarray) -> np.ndarray:
    image = Image.fromarray(photo)
    image.thumbnail((_SIDE, _SIDE))
    return np.asarray(image)


def _overlaid(photo: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The map over the photo in grey, so that one sees on what it lies; one picture takes less room than two."""
    stretched = Image.fromarray(values.astype(np.float32)).resize(photo.shape[1::-1], Image.Resampling.BILINEAR)
    colours = np.asarray(colormaps["viridis"](np.asarray(stretched)))[..., :3]
    return _SHARE * colours + (1 - _SHARE) * photo.mean(-1, keepdims=True) / 255


def _words(rows: dict[str, np.ndarray], maps: ActivationMaps) -> str:
    shares = ", ".join(f"{label} {100 * np.mean(values > _STRONG):.0f} %" for label, values in rows.items())
    chosen = f"channel(s) {', '.join(map(str, maps.channels))} of the layer {maps.layer}"
    return (
        f"Activation maps of {chosen} over {len(maps.names)} photo(s): {', '.join(maps.names)}. "
        f"Share of positions with more than half of a map's largest activation: {shares}."
    )
