"""How well identities that were not trained on are verified: the receiver operating characteristic (AFA Table 12)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afa_jax.errors import UserError
from afa_jax.report.curves import grouped, one_task
from afa_jax.report.figures.style import Look, described, legend, looks, mean_deviation, panels, styled
from afa_jax.report.runs import Run
from afa_jax.report.tables import spread

FEW = 10
"""Impostor pairs fewer than which leave a rate to chance."""


@styled
def roc(runs: Sequence[Run]) -> Figure:
    """True accept rate against false accept rate on a log scale, a line a recipe, mean ± deviation over seeds.

    The curves are read from `summary["verification"]["roc"]`, at the rates that all seeds of a recipe have: another
    seed holds out other identities, with more pairs or fewer. Rates that fewer than `FEW` impostor pairs stand behind
    are drawn dotted. The rates of `tar_at_far` are marked by a line and said in words.

    Raises:
      UserError: no run has verified anything, or the runs are of several data sets or networks.
    """
    one_task(runs)
    verified = [run for run in runs if run.summary.get("verification")]
    if not verified:
        raise UserError("The curve of true and false accepts is left out: no run has verified identities.")
    labelled = grouped(verified, lambda run: run.label)
    figure, axes = panels(1, 1, width=5.4, height=3.8)
    panel = axes[0][0]
    for (label, group), look in zip(labelled.items(), looks(labelled).values(), strict=True):
        _draw(panel, [run.summary["verification"] for run in group], look, label)
    stated = sorted({one["far"] for run in verified for one in run.summary["verification"]["tar_at_far"]})
    for far in stated:
        panel.axvline(far, color="grey", linewidth=0.8, zorder=0)
    panel.set(xscale="log")
    panel.xaxis.set_major_formatter("{x:g}")  # powers would be written in TeX, which is not set here
    panel.xaxis.set_minor_formatter("")
    panel.set(xlabel="false accept rate", ylabel="true accept rate (%)")
    legend(figure, axes.flat)
    said = " ".join(f"{label}: {_words(group, stated)}." for label, group in labelled.items())
    return described(figure, f"Line chart of the true accept rate against the false accept rate, log scale. {said}")


def _draw(panel: Axes, found: Sequence[Mapping[str, Any]], look: Look, label: str) -> None:
    curves = [dict(one["roc"]) for one in found]
    fars = np.array(sorted(set.intersection(*(set(curve) for curve in curves))))
    mean, deviation = np.array([mean_deviation([100 * curve[far] for curve in curves]) for far in fars]).T
    few = int(np.searchsorted(fars * min(one["pairs"]["impostor"] for one in found), FEW))
    style = {"color": look.colour, "linewidth": 1.2}
    panel.plot(fars[few:], mean[few:], **style, linestyle=look.line, label=label)
    panel.plot(fars[: few + 1], mean[: few + 1], **style, linestyle=":")
    if len(found) > 1:
        low, high = mean - deviation, mean + deviation
        panel.fill_between(fars, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _words(group: Sequence[Run], fars: Sequence[float]) -> str:
    said = []
    for far in fars:
        rates = [
            100 * one["tar"] for run in group for one in run.summary["verification"]["tar_at_far"] if one["far"] == far
        ]
        if rates:
            said.append(f"{spread(rates)} % at {far:g}")
    return ", ".join(said)
