"""Runs of several recipes and seeds, brought together into tables: for a terminal, in Markdown, LaTeX and CSV."""

import csv as csv_format
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from afa_jax.report.published import published
from afa_jax.report.runs import Run

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Cell:
    """One recipe on one data set over its seeds; accuracies in percent.

    Attributes:
      values: top-1 at the last step, a value a seed.
      failed: runs that ended without a result.
      published: mean and standard deviation in the papers.
      best: its mean is the highest of the column, and from each other's farther away than noise explains.
    """

    values: tuple[float, ...]
    failed: int = 0
    published: tuple[float, float] | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """Mean ± sample standard deviation, and the runs that failed."""
        return f"{spread(self.values)}, {self.failed} failed" if self.failed else spread(self.values)


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
    """A table a network: a column a data set, a row a recipe with its setting, in order of first appearance.

    Runs of different data sets stand side by side and are never averaged.
    """
    found: dict[str, dict[tuple[str, str], Cell]] = {}
    for run in runs:
        cells, place = found.setdefault(run.network, {}), (run.dataset, run.label)
        cell = cells.get(place) or Cell((), published=published(run.experiment, run.dataset, run.recipe))
        added = {"failed": cell.failed + 1} if run.failed else {"values": (*cell.values, run.top1)}
        cells[place] = replace(cell, **added)
    return [_table(network, cells) for network, cells in found.items()]


def _table(network: str, cells: Mapping[tuple[str, str], Cell]) -> Table:
    datasets = tuple(dict.fromkeys(dataset for dataset, _ in cells))
    labels = tuple(dict.fromkeys(label for _, label in cells))
    columns = {dataset: _mark_best({label: cells.get((dataset, label)) for label in labels}) for dataset in datasets}
    rows = tuple(Row(label, tuple(columns[dataset][label] for dataset in datasets)) for label in labels)
    notes = _notes([cell for row in rows for cell in row.cells if cell])
    return Table(f"Top-1 (%) of {network}", datasets, rows, notes, network)


def _notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    counts = sorted({len(cell.values) for cell in cells if cell.values})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0] if counts else 0}"
    notes = [f"At the last step, mean ± sample standard deviation, n = {seeds}."]
    if any(cell.best for cell in cells):
        notes.append(f"Bold: better than each other by Welch's t-test, two-sided, p < {SIGNIFICANCE:g}.")
    elif sum(len(cell.values) > 1 for cell in cells) > 1:
        notes.append(f"No best one stands out by Welch's t-test, two-sided, p < {SIGNIFICANCE:g}.")
    if any(cell.published for cell in cells):
        notes.append("Published: mean ± standard deviation over five runs.")
    return tuple(notes)


def _mark_best(column: Mapping[str, Cell | None]) -> dict[str, Cell | None]:
    """Marks the highest mean, if every other recipe's is significantly lower."""
    values = {label: cell.values for label, cell in column.items() if cell and cell.values}
    if not values:
        return dict(column)
    best = max(values, key=lambda label: statistics.fmean(values[label]))
    alone = len(values) > 1 and all(label == best or differ(values[best], values[label]) for label in values)
    return {
        label: replace(cell, best=True) if cell and alone and label == best else cell for label, cell in column.items()
    }


def differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two means differ by more than noise: Welch's t-test, two-sided.

    A single run says nothing of its noise, and runs that are all equal say nothing that a test could use.
    """
    if min(len(one), len(other)) < 2 or max(statistics.variance(one), statistics.variance(other)) == 0:
        return False
    result: Any = stats.ttest_ind(one, other, equal_var=False)
    return bool(result.pvalue < SIGNIFICANCE)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± sample standard deviation; a single value has no deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


Style = Callable[[Cell], str]


def _lines(table: Table, style: Style) -> list[list[str]]:
    """Head and rows; a data set for which the papers have figures gets a second column."""
    shown = [
        any(cell and cell.published for cell in column) for column in zip(*(r.cells for r in table.rows), strict=True)
    ]
    head = ["recipe"]
    for name, both in zip(table.columns, shown, strict=True):
        head += [name, "published"] if both else [name]
    lines = [head]
    for row in table.rows:
        line = [row.label]
        for cell, both in zip(row.cells, shown, strict=True):
            line.append(style(cell) if cell else "")
            if both:
                line.append("{:.4g} ± {:.1f}".format(*cell.published) if cell and cell.published else "")
        lines.append(line)
    return lines


def markdown(table: Table) -> str:
    """The table without its title, and its notes below."""
    head, *rows = _lines(table, lambda cell: f"**{cell.text}**" if cell.best else cell.text)
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, "", " ".join(table.notes)])


def text(table: Table) -> str:
    """The table for a terminal; the best is marked by a star."""
    lines = _lines(table, lambda cell: f"{cell.text} *" if cell.best else cell.text)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            [
                f"  {line[0]:<{widths[0]}}",
                *(f"{word:>{width}}" for word, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    notes = [note.replace("Bold:", "*:") for note in table.notes]
    return "\n".join([f"{table.title}", "", *shown, "", *notes])


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--"} | {c: f"\\{c}" for c in "_%&#${}"}


def _to_latex(words: str) -> str:
    return "".join(_LATEX.get(c, c) for c in words)


def latex(table: Table) -> str:
    """A `table` float; it needs the package booktabs."""
    style: Style = lambda cell: f"\0{cell.text}\1" if cell.best else cell.text  # noqa: E731
    head, *rows = ([_to_latex(word) for word in line] for line in _lines(table, style))
    body = [" & ".join(line).replace("\0", r"\textbf{").replace("\1", "}") + r" \\" for line in (head, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_to_latex(f'{table.title}. ' + ' '.join(table.notes))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def csv(table: Table) -> str:
    """A line a recipe and data set, with all digits and every seed's value."""
    file = io.StringIO()
    published_as = ("published mean", "published deviation")
    head = ("data set", "recipe", "mean", "deviation", "runs", "failed", *published_as, "best", "values")
    lines: list[tuple[Any, ...]] = [head]
    for row in table.rows:
        for dataset, cell in zip(table.columns, row.cells, strict=True):
            if cell:
                mean = statistics.fmean(cell.values) if cell.values else ""
                deviation = statistics.stdev(cell.values) if len(cell.values) > 1 else ""
                counts, reported = (len(cell.values), cell.failed), cell.published or ("", "")
                values = " ".join(map(repr, cell.values))
                lines.append((dataset, row.label, mean, deviation, *counts, *reported, int(cell.best), values))
    csv_format.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def provenance(summary: Mapping[str, Any]) -> str:
    """Where and when a figure was made: device, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{summary['device']}; {versions}; {summary['finished']}"
