"""Runs of several recipes and seeds, brought together into tables: for a terminal, in Markdown, LaTeX and CSV."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afa_jax.measures import MEASURES
from afa_jax.report import rendering
from afa_jax.report.curves import grouped
from afa_jax.report.published import Published, published
from afa_jax.report.runs import Run

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Cell:
    """One recipe on one data set over its seeds; rates in percent.

    Attributes:
      values: top-1 at the last step, or the true accept rate (TAR), a value a seed.
      failed: runs that ended without a result.
      published: mean and, where it is given, standard deviation in the papers.
      best: its mean is the highest of the column, and from each other's farther away than noise explains.
      counted: the text says of how many runs it is, for not all cells are of as many.
    """

    values: tuple[float, ...]
    failed: int = 0
    published: Published | None = None
    best: bool = False
    counted: bool = False

    @property
    def text(self) -> str:
        """Mean ± sample standard deviation, and the runs that failed."""
        number = f" (n = {len(self.values)})" if self.counted and self.values else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{spread(self.values)}{number}{failed}"


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """Recipes by data set, for one network."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    network: str = ""


def compare(runs: Iterable[Run]) -> list[Table]:
    """A table a network: a column a data set (and false accept rate, where identities were verified), a row a recipe
    with its setting, in order of first appearance.

    Runs of different data sets stand side by side and are never averaged.
    """
    return [_table(network, group) for network, group in grouped(runs, lambda run: run.network).items()]


def _scores(run: Run) -> dict[str, float]:
    """Of a finished run, in percent by column."""
    tars = {f"{run.dataset}, TAR at FAR {one['far']:g}": 100 * one["tar"] for one in run.verified}
    return tars or {run.dataset: run.score}


def _cells(runs: Sequence[Run]) -> dict[tuple[str, str], Cell]:
    """By column and label."""
    cells: dict[tuple[str, str], Cell] = {}
    columns = {
        dataset: tuple(dict.fromkeys(column for run in group if not run.failed for column in _scores(run)))
        for dataset, group in grouped(runs, lambda run: run.dataset).items()
    }
    for run in runs:
        scores = {} if run.failed else _scores(run)
        # Where alpha or beta is varied, a figure of the papers is none of all the points.
        varied = any(f"{name}=" in run.setting for name in ("alpha", "beta"))
        for column in scores or columns[run.dataset] or (run.dataset,):
            known = None if varied else published(run.experiment, column, run.recipe)
            cell = cells.get((column, run.label)) or Cell((), published=known)
            added = {"failed": cell.failed + 1} if run.failed else {"values": (*cell.values, scores[column])}
            cells[column, run.label] = replace(cell, **added)
    return cells


def _table(network: str, runs: Sequence[Run]) -> Table:
    cells = _cells(runs)
    datasets = tuple(dict.fromkeys(dataset for dataset, _ in cells))
    labels = tuple(dict.fromkeys(label for _, label in cells))
    uneven = len({len(cell.values) for cell in cells.values() if cell.values}) > 1
    cells = {place: replace(cell, counted=uneven) for place, cell in cells.items()}
    columns = {dataset: _mark_best({label: cells.get((dataset, label)) for label in labels}) for dataset in datasets}
    rows = tuple(Row(label, tuple(columns[dataset][label] for dataset in datasets)) for label in labels)
    notes = (*_notes([cell for row in rows for cell in row.cells if cell]), *_pairs(runs))
    return Table(f"{scored(runs)} of {network}", datasets, rows, notes, network)


def scored(runs: Iterable[Run]) -> str:
    """What the runs are compared by: `Top-1 (%)`, `TAR (%)` or both."""
    measures = " and ".join(dict.fromkeys(run.scored for run in runs if not run.failed)) or MEASURES["top1"]
    return f"{measures[0].upper()}{measures[1:]} (%)"


def _pairs(runs: Sequence[Run]) -> Iterable[str]:
    """How many pairs stand behind each false accept rate."""
    for dataset, group in grouped((run for run in runs if run.verified), lambda run: run.dataset).items():
        fewest: dict[float, int] = {}
        for one in (one for run in group for one in run.verified):
            fewest[one["far"]] = min(one["impostors"], fewest.get(one["far"], one["impostors"]))
        said = ", ".join(f"{count:,} at {far:g}" for far, count in fewest.items())
        yield f"Impostor pairs that are accepted on {dataset}, in the run with the fewest: {said}."


def _notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    counts = {len(cell.values) for cell in cells if cell.values}
    number = f" over n = {counts.pop()} seeds" if len(counts) == 1 else " over n seeds"
    notes = [f"At the last step, mean ± sample standard deviation{number}."]
    if any(cell.best for cell in cells):
        notes.append(f"Bold: better than each other by Welch's t-test, two-sided, p < {SIGNIFICANCE:g}.")
    elif sum(len(cell.values) > 1 for cell in cells) > 1:
        notes.append(f"No best one stands out by Welch's t-test, two-sided, p < {SIGNIFICANCE:g}.")
    if any(cell.published for cell in cells):
        several = any(cell.published and cell.published[1] is not None for cell in cells)
        notes.append("Published: mean ± standard deviation over five runs." if several else "Published: one figure.")
    return tuple(notes)


def _mark_best(column: Mapping[str, Cell | None]) -> dict[str, Cell | None]:
    """Marks the highest mean, if every other recipe's is significantly lower; runs that failed might lower it."""
    values = {label: cell.values for label, cell in column.items() if cell and cell.values}
    if not values:
        return dict(column)
    best = max(values, key=lambda label: statistics.fmean(values[label]))
    alone = len(values) > 1 and all(label == best or differ(values[best], values[label]) for label in values)
    return {
        label: replace(cell, best=True) if cell and alone and label == best and not cell.failed else cell
        for label, cell in column.items()
    }


def differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two means differ by more than noise: Welch's t-test, two-sided.

    A single run says nothing of its noise, and runs that are all equal say nothing that a test could use.
    """
    if min(len(one), len(other)) < 2 or max(statistics.variance(one), statistics.variance(other)) == 0:
        return False
    from scipy import stats  # here, because it takes long to import, which a start without a table need not wait

    result: Any = stats.ttest_ind(one, other, equal_var=False)
    return bool(result.pvalue < SIGNIFICANCE)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation; a single value has no deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _lines(table: Table) -> list[list[str]]:
    """Head and rows; a data set for which the papers have figures gets a second column."""
    both = [
        any(cell and cell.published for cell in column) for column in zip(*(r.cells for r in table.rows), strict=True)
    ]
    head = ["recipe"]
    for name, two in zip(table.columns, both, strict=True):
        head += [name, "published"] if two else [name]
    lines = [head]
    for row in table.rows:
        line = [row.label]
        for cell, two in zip(row.cells, both, strict=True):
            shown = cell.text if cell else ""
            line.append(rendering.bold(shown) if cell and cell.best else shown)
            if two:
                line.append(reported(cell.published) if cell and cell.published else "")
        lines.append(line)
    return lines


def reported(figure: Published) -> str:
    """A figure of the papers, in words."""
    mean, deviation = figure
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.1f}"


def markdown(table: Table) -> str:
    """The table without its title, and its notes below."""
    return f"{rendering.to_markdown(_lines(table))}\n\n{' '.join(table.notes)}"


def text(table: Table) -> str:
    """The table for a terminal."""
    notes = (note.replace("Bold:", "*:") for note in table.notes)
    return "\n".join([table.title, "", rendering.to_text(_lines(table)), "", *notes])


def latex(table: Table) -> str:
    """A `table` float; it needs the package booktabs."""
    return rendering.to_latex(_lines(table), " ".join([f"{table.title}.", *table.notes]))


def csv(table: Table) -> str:
    """A line a recipe and data set, with all digits and every seed's value."""
    published_as = ("published mean", "published deviation")
    head = ("data set", "recipe", "mean", "deviation", "runs", "failed", *published_as, "best", "values")
    lines: list[tuple[Any, ...]] = [head]
    for row in table.rows:
        for dataset, cell in zip(table.columns, row.cells, strict=True):
            if cell:
                mean = statistics.fmean(cell.values) if cell.values else ""
                deviation = statistics.stdev(cell.values) if len(cell.values) > 1 else ""
                counts = len(cell.values), cell.failed
                known = ["" if one is None else one for one in cell.published or (None, None)]
                values = " ".join(map(repr, cell.values))
                lines.append((dataset, row.label, mean, deviation, *counts, *known, int(cell.best), values))
    return rendering.to_csv(lines)


def provenance(summary: Mapping[str, Any]) -> str:
    """Where and when a figure was made: device, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{summary['device']}; {versions}; {summary['finished']}"
