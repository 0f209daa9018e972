"""Runs that differ in some settings, brought together by all others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from afa_jax.report.runs import Run, told_apart


def apart(runs: Sequence[Run], varied: Iterable[str]) -> dict[str, list[Run]]:
    """The runs by label, where the settings of the names `varied` do not tell them apart."""
    names = tuple(varied)
    alike = [_levelled(run, names) for run in runs]
    groups: dict[str, list[Run]] = {}
    for run, other in zip(runs, told_apart(alike), strict=True):
        groups.setdefault(other.label, []).append(run)
    return groups


def _levelled(run: Run, names: Sequence[str]) -> Run:
    experiment = run.experiment
    for name in names:
        experiment = _set_nothing(experiment, name.split("."))
    return replace(run, summary={**run.summary, "experiment": experiment})


def _set_nothing(settings: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    first, *rest = path
    if first not in settings:
        return dict(settings)
    return {**settings, first: _set_nothing(settings[first], rest) if rest else None}
