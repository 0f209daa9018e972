"""Training and test curves of runs, alone and as a mean over seeds."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from afa_jax.errors import UserError
from afa_jax.report.runs import Run

METRICS = {"cross_entropy": "cross-entropy", "loss": "total loss", "top1": "top-1 (%)", "tar": "TAR (%)"}
RATES = ("top1", "tar")
"""Metrics that are shares, shown in percent; the others are losses."""
SPLITS = {"train": "training", "test": "test"}
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Curve:
    """A metric against the step.

    Attributes:
      steps: [T], ascending; counted through all stages whose result is kept.
      values: [R, T], a row a run; rates in percent.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[T], over the runs."""
        return self.values.mean(0)

    @property
    def deviation(self) -> np.ndarray:
        """[T], the sample standard deviation over the runs; 0 for a single one."""
        return self.values.std(0, ddof=1) if len(self.values) > 1 else np.zeros(len(self.steps))

    def thinned(self, most: int) -> "Curve":
        """At most `most` (two or more) of its points, evenly spread, first and last among them."""
        if len(self.steps) <= most:
            return self
        at = np.linspace(0, len(self.steps) - 1, most).round().astype(int)
        return Curve(self.steps[at], self.values[:, at])


def grouped(runs: Iterable[Run], key: Callable[[Run], _Key]) -> dict[_Key, list[Run]]:
    """The runs by `key`, in order of first appearance."""
    groups: dict[_Key, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def one_task(runs: Sequence[Run]) -> None:
    """Holds that nothing is averaged that must not be.

    Raises:
      UserError: there is no run, or they are of several data sets or networks.
    """
    for what, found in (("data sets", {r.dataset for r in runs}), ("networks", {r.network for r in runs})):
        if len(found) != 1:
            raise UserError(f"One figure shows runs of one data set and network, not of {len(found)} {what}.")


def curve(run: Run, split: str, metric: str) -> Curve:
    """One run's curve, `values` [1, T]; T is 0 where the journal does not have the metric.

    Stages that are thrown away, such as those that DELTA's channel weights are measured on, are left out: what is
    drawn are the steps that made the result, equally many in recipes of one stage and of two.
    """
    starts = _starts(run)
    points = {
        starts[record["stage"]] + record["step"]: (100 if metric in RATES else 1) * record[metric]
        for record in run.records
        if record["split"] == split and record["stage"] in starts and metric in record
    }
    steps = sorted(points)
    return Curve(np.array(steps, int), np.array([[points[step] for step in steps]], float))


def together(runs: Sequence[Run], split: str, metric: str) -> Curve:
    """The curves of several seeds at the steps that all of them have; runs without the metric are left out."""
    curves = [one for run in runs if len((one := curve(run, split, metric)).steps)]
    if not curves:
        return Curve(np.zeros(0, int), np.zeros((0, 0)))
    shared = set.intersection(*(set(one.steps.tolist()) for one in curves))
    steps = np.array(sorted(shared), int)
    return Curve(steps, np.stack([one.values[0, np.isin(one.steps, steps)] for one in curves]))


def boundaries(run: Run) -> list[int]:
    """The steps at which a stage hands over to the next."""
    return [start for start in _starts(run).values() if start]


def _starts(run: Run) -> dict[str, int]:
    """Before which step of the whole each stage begins whose result is kept."""
    starts, done = {}, 0
    for stage in run.summary["stages"]:
        if stage["kept"]:
            starts[stage["name"]] = done
            done += stage["steps"]
    return starts
