"""Runs of several recipes and seeds, brought together into one table."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One recipe over its seeds; accuracies in percent."""

    recipe: str
    top1: tuple[float, ...]
    """At the last step, a value a seed."""
    best_test_top1: tuple[float, ...]
    """The best evaluation of the run, chosen *on the test set*: to compare with papers that report it, not a result."""
    failed: int = 0
    """Runs that ended without a result."""


def rows(summaries: Iterable[Mapping[str, Any]], failed: Mapping[str, int] | None = None) -> list[Row]:
    """One row a recipe in order of first appearance; `failed` counts the runs without a summary by recipe."""
    grouped: dict[str, list[Mapping[str, Any]]] = {name: [] for name in failed or {}}
    for summary in summaries:
        grouped.setdefault(summary["recipe"], []).append(summary)
    return [
        Row(
            recipe,
            tuple(100 * s["last_top1"] for s in runs),
            tuple(100 * s["best_test_top1"] for s in runs),
            (failed or {}).get(recipe, 0),
        )
        for recipe, runs in grouped.items()
    ]


def spread(values: tuple[float, ...]) -> str:
    """Mean ± sample standard deviation; a single value has no deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def markdown(table: Iterable[Row]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| recipe | top-1 (%) | runs |", "|---|---|---|"]
    for row in table:
        runs = f"{len(row.top1)}" + (f", {row.failed} diverged" if row.failed else "")
        lines.append(f"| {row.recipe} | {spread(row.top1)} | {runs} |")
    return "\n".join(lines)


def text(table: Iterable[Row]) -> str:
    """The comparison for a terminal."""
    lines = [f"  {'recipe':<22} {'top-1 (%)':>13}  runs"]
    for row in table:
        failed = f", {row.failed} diverged" if row.failed else ""
        lines.append(f"  {row.recipe:<22} {spread(row.top1):>13}  {len(row.top1)}{failed}")
    return "\n".join(lines)


def provenance(summary: Mapping[str, Any]) -> str:
    """Where and when a figure was made: device, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"{summary['device']}; {versions}; {summary['finished']}"
