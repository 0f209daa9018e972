"""Top-1 against alpha, with the alphas that work."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from afa_jax.report.figures.style import COLOURS, panels, styled


@styled
def alpha_range(rows: Sequence[Mapping[str, Any]], tolerance: float) -> Figure:
    """Top-1 against alpha: a panel a convention, a line a network; crosses where seeds blew up.

    Args:
      rows: each with `network`, `convention`, `alpha`, `top1` (percent, a value a seed that finished) and `diverged`.
      tolerance: points below a line's best mean within which an alpha works; drawn as a band.
    """
    conventions = list(dict.fromkeys(row["convention"] for row in rows))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = panels(1, len(conventions), width=4.2, height=3.4, sharey=True)
    for panel, convention in zip(axes[0], conventions, strict=True):
        for i, (colour, network) in enumerate(zip(COLOURS, networks, strict=False)):
            line = [row for row in rows if (row["network"], row["convention"]) == (network, convention)]
            whole = [row for row in line if row["top1"] and not row["diverged"]]
            broken = [row["alpha"] for row in line if row["diverged"]]
            means = [sum(row["top1"]) / len(row["top1"]) for row in whole]
            panel.plot([row["alpha"] for row in whole], means, "o-", color=colour, markersize=4, label=network)
            for row in whole:
                alphas = [row["alpha"]] * len(row["top1"])
                panel.plot(alphas, row["top1"], ".", color=colour, alpha=0.35, markersize=4)
            panel.plot(broken, [4 + 4 * i] * len(broken), "x", color=colour)
            best = working(rows, network, convention, tolerance)
            if best:
                panel.plot([best[0], best[-1]], [100 + 2 * i] * 2, color=colour, linewidth=3, solid_capstyle="butt")
        panel.set(xscale="log", xlabel="alpha", title=convention)
        panel.xaxis.set_major_formatter("{x:g}")
    axes[0][0].set(ylabel="top-1 (%)", ylim=(0, 100 + 2 * len(networks) + 1))
    axes[0][0].set_yticks(range(0, 101, 20))
    handles, _ = axes[0][0].get_legend_handles_labels()
    bar = Line2D([], [], color="grey", linewidth=3, label=f"works: within {tolerance:g} points of the best")
    cross = Line2D([], [], color="grey", marker="x", linestyle="", label="a seed blew up")
    figure.legend(handles=[*handles, bar, cross], loc="outside lower center", ncols=4)
    return figure


def working(rows: Sequence[Mapping[str, Any]], network: str, convention: str, tolerance: float) -> list[float]:
    """The alphas at which every seed finished and the mean is within `tolerance` points of the line's best."""
    line = [row for row in rows if (row["network"], row["convention"]) == (network, convention)]
    means = {
        row["alpha"]: sum(row["top1"]) / len(row["top1"]) if row["top1"] and not row["diverged"] else -math.inf
        for row in line
    }
    return sorted(alpha for alpha, mean in means.items() if mean >= max(means.values()) - tolerance > -math.inf)
