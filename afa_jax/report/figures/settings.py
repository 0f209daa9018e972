"""Top-1 against a setting, and what attentive modules cost.

Images a class (AFA Fig. 4), alpha and beta (DELTA Fig. 4), attentive modules (AFA Table 11), their parameters (AFA
Table 6).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from afa_jax.errors import UserError
from afa_jax.report.curves import grouped, one_task
from afa_jax.report.figures.style import COLOURS, described, legend, looks, mean_deviation, panels, styled
from afa_jax.report.grouping import apart
from afa_jax.report.runs import Run
from afa_jax.report.tables import scored, spread

PER_CLASS = "data.per_class"


@styled
def images_a_class(runs: Sequence[Run]) -> Figure:
    """Top-1 against labelled images a class, a line a recipe, mean ± deviation over seeds (AFA Fig. 4).

    Runs on the whole training split have no such number and are left out.

    Raises:
      UserError: fewer than two numbers of images, or the runs are of several data sets or networks.
    """
    limited = [run for run in runs if run.experiment["data"]["per_class"]]
    numbers = {run.experiment["data"]["per_class"] for run in limited}
    if len(numbers) < 2:
        raise UserError("Top-1 against images a class is left out: it wants runs with two or more data.per_class.")
    if len({(run.experiment["data"]["name"], run.experiment["data"]["dir"], run.network) for run in limited}) > 1:
        raise UserError("One figure shows runs of one data set and network, not of several.")
    figure, axes = panels(1, 1, width=5.0, height=3.6)
    said = _lines(axes[0][0], apart(limited, [PER_CLASS]), lambda run: run.experiment["data"]["per_class"])
    axes[0][0].set(xlabel="labelled images a class", ylabel=f"{limited[0].scored} (%)", xticks=sorted(numbers))
    legend(figure, axes.flat)
    return described(figure, f"Line chart of test {limited[0].scored} against labelled images a class. {said}")


@styled
def attentive_modules(runs: Sequence[Run]) -> Figure:
    """Top-1, and seconds a pass over the training images, against the number of aligned layers (AFA Table 11).

    Raises:
      UserError: fewer than two numbers of layers, or the runs are of several data sets or networks.
    """
    one_task(runs)
    series = {
        label: group
        for label, group in apart(runs, ["taps", "tap_layers"]).items()
        if len({_taps(run) for run in group}) > 1
    }
    if not series:
        raise UserError("Time and top-1 by attentive modules are left out: they want runs with two or more taps.")
    figure, axes = panels(1, 2, width=3.6, height=3.2)
    accuracy, time = axes[0]
    said = _lines(accuracy, series, _taps)
    said_time = _lines(time, series, _taps, _epoch_seconds, " s")
    accuracy.set(ylabel=f"{runs[0].scored} (%)")
    time.set(ylabel="seconds an epoch", ylim=(0, 1.1 * time.get_ylim()[1]))
    for panel in axes[0]:
        panel.set(xlabel="attentive modules", xticks=sorted({_taps(run) for group in series.values() for run in group}))
    legend(figure, axes.flat)
    return described(
        figure, f"Two line charts against the number of attentive modules. {scored(runs)}: {said} Time: {said_time}"
    )


def _taps(run: Run) -> int:
    named = [part for part in run.experiment["tap_layers"].split(",") if part.strip()]
    return len(named) or run.experiment["taps"]


def _epoch_seconds(run: Run) -> float:
    speed = run.summary["train_images_per_second"]
    return run.summary["train_images"] / speed if speed else math.nan


def _lines(
    panel: Axes,
    series: Mapping[str, Sequence[Run]],
    place: Callable[[Run], int],
    value: Callable[[Run], float] = lambda run: run.score,
    unit: str = " %",
) -> str:
    """Draws a line a label, `value` against `place` with error bars; and says the same in words."""
    said = []
    for (label, group), look in zip(series.items(), looks(series).values(), strict=True):
        at = {x: [value(run) for run in some] for x, some in sorted(grouped(group, place).items())}
        means, deviations = np.array([mean_deviation(values) for values in at.values()]).T
        style = {"marker": look.marker, "markersize": 4, "linewidth": 1.2, "capsize": 2, **look.options(label)}
        panel.errorbar(list(at), means, deviations, **style)
        said.append(f"{label}: {', '.join(f'{x}: {spread(values)}{unit}' for x, values in at.items())}.")
    return " ".join(said)


@styled
def alpha_beta(runs: Sequence[Run]) -> Figure:
    """Mean top-1 over seeds by alpha and beta, a heat map a recipe, its best framed (DELTA Fig. 4).

    A recipe with another alpha in each of its stages has them joined by a slash.

    Raises:
      UserError: no recipe was run with two or more alphas or betas, or the runs are of several data sets or networks.
    """
    one_task(runs)
    names = {stage["name"] for run in runs for stage in run.summary["stages"]}
    series = apart(runs, [f"methods.{name}.{key}" for name in sorted(names) for key in ("alpha", "beta")])
    cells = {
        label: found
        for label, group in series.items()
        if len(found := grouped(group, lambda run: (weights(run, "alpha"), weights(run, "beta")))) > 1
    }
    if not cells:
        raise UserError(
            "The alpha-beta heat map is left out: it wants runs of a recipe with two or more alphas or betas."
        )
    tops = [fmean([run.score for run in some]) for found in cells.values() for some in found.values()]
    figure, axes = panels(1, len(cells), width=4.2, height=3.4)
    said = [
        _heat_map(panel, label, found, (min(tops), max(tops)))
        for panel, (label, found) in zip(axes[0], cells.items(), strict=True)
    ]
    figure.colorbar(axes[0][0].images[0], ax=list(axes[0]), label=f"{runs[0].scored} (%)")
    return described(figure, f"Heat map of mean test {runs[0].scored} by alpha and beta. {' '.join(said)}")


def weights(run: Run, key: str) -> tuple[float, ...]:
    """A run's `alpha` or `beta`: of the stages whose result is kept, each value once."""
    methods = run.experiment["methods"]
    kept = [methods[stage["name"]] for stage in run.summary["stages"] if stage["kept"]]
    return tuple(dict.fromkeys(settings[key] for settings in kept if key in settings))


def _heat_map(
    panel: Axes, label: str, found: Mapping[tuple[tuple[float, ...], ...], Sequence[Run]], limits: tuple[float, float]
) -> str:
    alphas, betas = (sorted({key[i] for key in found}) for i in (0, 1))
    grid = np.full((len(betas), len(alphas)), np.nan)
    for (alpha, beta), some in found.items():
        grid[betas.index(beta), alphas.index(alpha)] = fmean([run.score for run in some])
    panel.grid(False)
    panel.imshow(grid, cmap="cividis", vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    middle = sum(limits) / 2
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value < middle else "black"
            panel.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    row, column = np.unravel_index(np.nanargmax(grid), grid.shape)
    corner = (float(column) - 0.5, float(row) - 0.5)
    panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2))
    panel.set(title=label, xlabel="alpha", ylabel="beta")
    panel.set_xticks(range(len(alphas)), [_joined(alpha) for alpha in alphas])
    panel.set_yticks(range(len(betas)), [_joined(beta) for beta in betas])
    best = f"alpha {_joined(alphas[column])} and beta {_joined(betas[row])} with {np.nanmax(grid):.1f} %"
    return f"{label}: {np.nanmin(grid):.1f} to {np.nanmax(grid):.1f} % over {len(found)} cells, best {best}."


def _joined(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values) or "–"


@styled
def parameters(runs: Sequence[Run]) -> Figure:
    """How many parameters a network has and how many its attentive modules, which training alone needs (AFA Table 6).

    Raises:
      UserError: no run has attentive modules.
    """
    counts: dict[str, int] = {}
    for run in runs:
        found = run.summary["parameters"]
        attention = {stage: count for stage, count in found["attention"].items() if count}
        if attention:
            counts[run.network] = found["network"]
            counts |= {f"{run.network}, {run.label}: {stage}": count for stage, count in attention.items()}
    if not counts:
        raise UserError("Parameter counts are left out: no run has attentive modules.")
    figure, axes = panels(1, 1, width=6.0, height=0.6 + 0.32 * len(counts))
    panel = axes[0][0]
    networks = {run.network for run in runs}
    colours = [COLOURS[0] if name in networks else COLOURS[1] for name in counts]
    bars = panel.barh(list(counts), list(counts.values()), color=colours)
    panel.bar_label(bars, [millions(count) for count in counts.values()], padding=3)
    panel.set(xscale="log", xlabel="parameters")
    panel.xaxis.set_major_formatter(lambda count, _: millions(round(count)))
    panel.xaxis.set_minor_formatter("")  # within a decade it would write powers in TeX, which is not set here
    panel.margins(x=0.15)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    said = ", ".join(f"{name} {millions(count)}" for name, count in counts.items())
    return described(figure, f"Bars of parameter counts, network and attentive modules of each stage: {said}.")


def millions(count: int) -> str:
    """`44.55M`, `0.20M` or, below a hundred thousand, `61,984`."""
    return f"{count / 1e6:.2f}M" if count >= 100_000 else f"{count:,}"
