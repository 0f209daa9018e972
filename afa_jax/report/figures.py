"""Figures from the files that runs leave: one style, colours that the colour-blind can tell apart, PNG and SVG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {  # its type would be a list of all of matplotlib's settings
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "svg.hashsalt": "afa_jax",  # the same figure is the same file
}


def save(figure: Figure, path: Path) -> None:
    """Writes `path` with the endings `.svg` and `.png`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for suffix in (".svg", ".png"):
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(path.with_suffix(suffix), dpi=150, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


def alpha_range(rows: Sequence[Mapping[str, Any]], tolerance: float) -> Figure:
    """Top-1 against alpha: a panel a convention, a line a network; crosses where seeds blew up.

    Args:
      rows: each with `network`, `convention`, `alpha`, `top1` (percent, a value a seed that finished) and `diverged`.
      tolerance: points below a line's best mean within which an alpha works; drawn as a band.
    """
    conventions = list(dict.fromkeys(row["convention"] for row in rows))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(conventions), figsize=(4.2 * len(conventions), 3.1), sharey=True, squeeze=False
        )
        for panel, convention in zip(panels[0], conventions, strict=True):
            for colour, network in zip(COLOURS, networks, strict=False):
                line = [row for row in rows if (row["network"], row["convention"]) == (network, convention)]
                whole = [row for row in line if row["top1"] and not row["diverged"]]
                broken = [row["alpha"] for row in line if row["diverged"]]
                means = [sum(row["top1"]) / len(row["top1"]) for row in whole]
                alphas = [row["alpha"] for row in whole]
                panel.plot(alphas, means, "o-", color=colour, markersize=4, label=network)
                for row in whole:
                    panel.plot(
                        [row["alpha"]] * len(row["top1"]), row["top1"], ".", color=colour, alpha=0.35, markersize=4
                    )
                height = 4 if colour == COLOURS[0] else 8
                panel.plot(broken, [height] * len(broken), "x", color=colour)
                best = working(rows, network, convention, tolerance)
                if best:
                    place = 100 + 2 * networks.index(network)
                    panel.plot([best[0], best[-1]], [place] * 2, color=colour, linewidth=3, solid_capstyle="butt")
            panel.set(xscale="log", xlabel="alpha", title=convention)
            panel.title.set_fontsize(9)
        panels[0][0].set(ylabel="top-1 (%)", ylim=(0, 100 + 2 * len(networks) + 1))
        panels[0][0].set_yticks(range(0, 101, 20))
        handles, _ = panels[0][0].get_legend_handles_labels()
        bar = Line2D([], [], color="grey", linewidth=3, label=f"works: within {tolerance:g} points of the best")
        cross = Line2D([], [], color="grey", marker="x", linestyle="", label="a seed blew up")
        figure.legend(
            handles=[*handles, bar, cross], loc="upper center", ncols=4, frameon=False, bbox_to_anchor=(0.5, -0.02)
        )
    return figure


def working(rows: Sequence[Mapping[str, Any]], network: str, convention: str, tolerance: float) -> list[float]:
    """The alphas at which every seed finished and the mean is within `tolerance` points of the line's best."""
    line = [row for row in rows if (row["network"], row["convention"]) == (network, convention)]
    means = {
        row["alpha"]: sum(row["top1"]) / len(row["top1"]) if row["top1"] and not row["diverged"] else -math.inf
        for row in line
    }
    return sorted(alpha for alpha, mean in means.items() if mean >= max(means.values()) - tolerance > -math.inf)
