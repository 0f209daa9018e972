"""How training went: curves of the losses (AFA Fig. 3 and 5) and of top-1 by rate schedule (DELTA Fig. 3)."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from afa_jax.errors import UserError
from afa_jax.measures import measure
from afa_jax.report.curves import METRICS, RATES, SPLITS, Curve, boundaries, grouped, one_task, together
from afa_jax.report.figures.style import LINES, Look, described, legend, looks, panels, styled
from afa_jax.report.grouping import apart
from afa_jax.report.runs import Run
from afa_jax.report.tables import spread

_FEW = 30
"""Points up to which each has its mark."""
_PANEL_POINTS, _FEWEST_POINTS = 1600, 50
"""Of all lines of a panel together, and of a line at the least: more are not seen, and files stay small."""


@styled
def curves(runs: Sequence[Run]) -> Figure:
    """Training and test curves of cross-entropy and total loss, a line a recipe, mean ± deviation over seeds.

    Dotted lines across are where one stage hands over to the next.

    Raises:
      UserError: no run has a curve, or the runs are of several data sets or networks.
    """
    one_task(runs)
    labelled = grouped(runs, lambda run: run.label)
    style = looks(labelled)
    metrics = [metric for metric in METRICS if metric not in RATES]
    found = {
        (split, metric, label): line
        for split in SPLITS
        for metric in metrics
        for label, group in labelled.items()
        if len((line := together(group, split, metric)).steps)
    }
    if not found:
        raise UserError("The curves of the losses are left out: no run's journal has any.")
    splits = [split for split in SPLITS if any(split == one for one, _, _ in found)]
    figure, axes = panels(len(splits), len(metrics), width=4.0, sharex=True)
    for row, split in zip(axes, splits, strict=True):
        for panel, metric in zip(row, metrics, strict=True):
            for label, look in style.items():
                if line := found.get((split, metric, label)):
                    _draw(panel, line.thinned(max(_FEWEST_POINTS, _PANEL_POINTS // len(style))), look, label)
            if not panel.lines:
                panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes, color="grey")
            for step in sorted({step for run in runs for step in boundaries(run)}):
                panel.axvline(step, color="grey", linestyle=":", linewidth=0.8)
            panel.set(ylabel=METRICS[metric], title=SPLITS[split])
    for panel in axes[-1]:
        panel.set_xlabel("step")
    legend(figure, axes.flat)
    return described(figure, _ends(found))


def _draw(panel: Axes, line: Curve, look: Look, label: str) -> None:
    marker = look.marker if len(line.steps) <= _FEW else ""
    panel.plot(line.steps, line.mean, marker=marker, markersize=3, linewidth=1.2, **look.options(label))
    if len(line.values) > 1:
        low, high = line.mean - line.deviation, line.mean + line.deviation
        panel.fill_between(line.steps, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _ends(found: dict[tuple[str, str, str], Curve]) -> str:
    parts: dict[str, list[str]] = {}
    for (split, metric, label), line in found.items():
        end = spread(line.values[:, -1].tolist(), 3)
        parts.setdefault(f"{SPLITS[split]} {METRICS[metric]}", []).append(f"{label} {end}")
    ends = "; ".join(f"{name}: {', '.join(values)}" for name, values in parts.items())
    return f"Line charts of the losses against the step, mean over seeds. At their last point, {ends}."


@styled
def schedules(runs: Sequence[Run]) -> Figure:
    """Top-1 (or TAR) on the test split against the step (DELTA Fig. 3).

    A colour is a recipe, a style of line a rate schedule.

    Raises:
      UserError: all runs have one schedule, were tested once only, or are of several data sets or networks.
    """
    one_task(runs)
    names = list(dict.fromkeys(run.experiment["schedule"] for run in runs))
    if len(names) < 2:
        raise UserError(f"Learning curves by rate schedule are left out: all runs have the schedule {names[0]}.")
    series = apart(runs, ("schedule",))
    found = {
        (label, name): together(group, "test", measure(runs[0].summary))
        for label, all_runs in series.items()
        for name, group in grouped(all_runs, lambda run: run.experiment["schedule"]).items()
    }
    if all(len(line.steps) < 2 for line in found.values()):
        raise UserError("Learning curves by rate schedule are left out: runs were tested once; set eval_every.")
    style = looks(series)
    figure, axes = panels(1, 1, width=5.4, height=3.8)
    panel = axes[0][0]
    for (label, name), line in found.items():
        _draw(panel, line, style[label]._replace(line=LINES[names.index(name) % len(LINES)]), f"{label}, {name}")
    panel.set(xlabel="step", ylabel=f"{runs[0].scored} (%)")
    handles = [Line2D([], [], color=look.colour, marker=look.marker, label=label) for label, look in style.items()]
    handles += [
        Line2D([], [], color="grey", linestyle=LINES[i % len(LINES)], label=name) for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    ends = ", ".join(f"{label} {name} {spread(line.values[:, -1].tolist())} %" for (label, name), line in found.items())
    return described(
        figure, f"Line chart of test {runs[0].scored} against the step by rate schedule. At the last step: {ends}."
    )
