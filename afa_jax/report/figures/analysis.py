"""What a trained network shows.

Filters' distances from the start (DELTA Fig. 5), the gap between training and test loss (AFA §4.6), activation at parts
(DELTA Table 3) and detectors (DELTA Table 4).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afa_jax.errors import UserError
from afa_jax.report.analyses import QUANTILES, Found
from afa_jax.report.curves import one_task
from afa_jax.report.figures.style import Look, described, legend, looks, mean_deviation, panels, styled
from afa_jax.report.tables import spread

_GRID_COLUMNS = 5
_SOURCE = "source network"


def by_label(found: Sequence[Found], what: str) -> dict[str, list[Any]]:
    """What was found, by the runs' labels.

    Raises:
      UserError: nothing was found, or it is of several data sets or networks.
    """
    if not found:
        raise UserError(f"{what} left out: no run has its file in analysis/; make it with tools/analyse.py.")
    one_task([one.run for one in found])
    groups: dict[str, list[Any]] = {}
    for one in found:
        groups.setdefault(one.run.label, []).append(one.content)
    return groups


@styled
def filter_distances(found: Sequence[Found]) -> Figure:
    """Sorted Euclidean distances of the convolutions' filters from where they began, a panel a stage of the network, a
    line a recipe, mean ± deviation over seeds; the largest at the left, as in DELTA Fig. 5.

    Raises:
      UserError: as in `by_label`.
    """
    groups = by_label(found, "The distances of the filters are")
    stages = list(dict.fromkeys(stage for all_seeds in groups.values() for one in all_seeds for stage in one))
    columns = min(len(stages), _GRID_COLUMNS)
    figure, axes = panels(math.ceil(len(stages) / columns), columns, width=2.2, height=2.4)
    share = np.linspace(0, 100, QUANTILES)
    said = []
    for panel, stage in zip(axes.flat, stages, strict=False):
        for (label, all_seeds), look in zip(groups.items(), looks(groups).values(), strict=True):
            sorted_ones = np.array([one[stage][::-1] for one in all_seeds if stage in one])
            if len(sorted_ones):
                _band(panel, share, sorted_ones, look, label)
                said.append(f"{stage}, {label}: median {np.median(sorted_ones.mean(0)):.3g}, largest "
                            f"{sorted_ones.mean(0)[0]:.3g}")  # fmt: skip
        panel.set(title=stage, ylim=(0, None))
    for panel in axes.flat[len(stages) :]:
        panel.remove()
    for panel in axes[:, 0]:
        panel.set_ylabel("distance")
    for panel in axes[-1]:
        panel.set_xlabel("farthest filters (%)")
    legend(figure, axes.flat[: len(stages)])
    return described(figure, f"Line charts of the filters' sorted distances from the start. {'; '.join(said)}.")


def _band(panel: Axes, x: np.ndarray, values: np.ndarray, look: Look, label: str) -> None:
    mean = values.mean(0)
    panel.plot(x, mean, linewidth=1.2, **look.options(label))
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        panel.fill_between(x, mean - deviation, mean + deviation, color=look.colour, alpha=0.15, linewidth=0)


@styled
def generalisation_gap(found: Sequence[Found]) -> Figure:
    """Cross-entropy of the final network on training and test images, and the gap between them that AFA's Theorem 1
    bounds; a point a recipe, mean ± deviation over seeds.

    Raises:
      UserError: as in `by_label`.
    """
    groups = by_label(found, "The gap between training and test loss is")
    bars = {
        name: {label: [one[key] for one in all_seeds] for label, all_seeds in groups.items()}
        for key, name in (("train", "training loss"), ("test", "test loss"), ("gap", "gap"))
    }
    figure, axes = panels(1, 1, width=1.5 + 0.9 * len(groups), height=3.2)
    said = _bars(axes[0][0], bars, digits=3)
    axes[0][0].set(ylabel="cross-entropy")
    axes[0][0].axhline(0, color="grey", linewidth=0.8)
    legend(figure, axes.flat)
    return described(figure, f"Bars of training loss, test loss and their gap by recipe. {said}")


@styled
def parts(found: Sequence[Found]) -> Figure:
    """Mean normalised activation at each part, summed over the parts, by recipe and for the source (DELTA Table 3).

    Raises:
      UserError: as in `by_label`.
    """
    groups = by_label(found, "Activation at parts is")
    sums = {label: [one["target"]["sum"] for one in all_seeds] for label, all_seeds in groups.items()}
    # Seeds share the source network, but for networks trained here on their own source images.
    source = [one["source"]["sum"] for all_seeds in groups.values() for one in all_seeds]
    figure, axes = panels(1, 1, width=1.8 + 0.7 * (len(groups) + 1), height=3.0)
    said = _bars(axes[0][0], {"activation": {_SOURCE: source, **sums}}, digits=3)
    axes[0][0].set(ylabel="activation, sum over parts")
    return described(figure, f"Bars of the mean normalised activation summed over the parts. {said}")


@styled
def detectors(found: Sequence[Found]) -> Figure:
    """Units that detect a concept, by category: a bar a recipe, and the source network's (DELTA Table 4).

    Raises:
      UserError: as in `by_label`.
    """
    groups = by_label(found, "Detectors by category are")
    first = next(iter(groups.values()))
    categories = list(dict.fromkeys(category for one in first for category in one["source"] | one["target"]))
    series = {_SOURCE: [one["source"] for one in first]}
    series |= {label: [one["target"] for one in all_seeds] for label, all_seeds in groups.items()}
    bars = {
        label: {category: [one.get(category, 0) for one in all_seeds] for category in categories}
        for label, all_seeds in series.items()
    }
    figure, axes = panels(1, 1, width=2.0 + 0.25 * len(categories) * len(series), height=3.2)
    said = _bars(axes[0][0], bars)
    axes[0][0].set(ylabel="detectors")
    legend(figure, axes.flat)
    return described(figure, f"Bars of the number of units that detect a concept, by category. {said}")


def _bars(panel: Axes, bars: Mapping[str, Mapping[str, Sequence[float]]], digits: int = 1) -> str:
    """A group of bars a place, a colour a series; `bars` by series and place holds a value a seed. Says it in words."""
    width = 0.8 / len(bars)
    said = []
    for i, ((name, places), look) in enumerate(zip(bars.items(), looks(bars).values(), strict=True)):
        means, deviations = np.array([mean_deviation(values) for values in places.values()]).T
        at = np.arange(len(places)) + (i - (len(bars) - 1) / 2) * width
        panel.bar(at, means, width, yerr=deviations, color=look.colour, capsize=2, label=name,
                  edgecolor="white")  # fmt: skip
        said += [f"{name}, {place}: {spread(values, digits)}" for place, values in places.items()]
    labels = list(next(iter(bars.values())))
    tilt = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 9 else {}
    panel.set_xticks(range(len(labels)), labels, **tilt)
    panel.grid(axis="x", visible=False)
    return f"{'; '.join(said)}."
