"""Several recipes and seeds of one experiment, one run after the other, and the table of all."""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from afa_jax import hosts
from afa_jax.errors import DivergedError, UserError
from afa_jax.experiment import run
from afa_jax.files import write_json
from afa_jax.report import tables
from afa_jax.report.runs import Run, told_apart
from afa_jax.settings import Experiment, to_json
from afa_jax.training.workdir import CONFIG

COMPARISON = "comparison.json"


def run_all(experiment: Experiment, root: Path, command: str = "") -> list[dict[str, Any]]:
    """Every recipe with every seed, each in `root/<recipe>/seed<n>`; ends with the table of all.

    A run that diverges is told and does not stop the others.

    Args:
      command: the shell command that makes all of them, for the summaries.

    Raises:
      DivergedError: after the others are done, if a run diverged.
    """
    if (root / CONFIG).exists():
        raise UserError(
            f"The workdir {root} holds a single run and cannot hold a comparison: choose another with --workdir."
        )
    begun = time.perf_counter()
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    summaries, failures = [], []
    failed = dict.fromkeys(experiment.recipes, 0)
    # Seed by seed, so that an early look at an unfinished comparison sees every recipe.
    for seed, recipe in itertools.product(seeds, experiment.recipes):
        one = dataclasses.replace(experiment, recipe=recipe, seed=seed, seeds=1)
        workdir = root / recipe / f"seed{seed}"
        own = f" --config.recipe={recipe} --config.seed={seed} --config.seeds=1 --workdir={quote(str(workdir))}"
        try:
            summaries.append(run(one, workdir, command=command and command + own))
        except DivergedError as error:
            failed[recipe] += 1
            failures.append(f"{recipe}, seed {seed}: {error}")
    if hosts.first():
        _tell(experiment, root, summaries, failed, time.perf_counter() - begun)
    if failures:
        raise DivergedError(f"{len(failures)} of {len(failures) + len(summaries)} runs diverged: {failures[0]}")
    return summaries


def _tell(
    experiment: Experiment, root: Path, summaries: list[dict[str, Any]], failed: dict[str, int], seconds: float
) -> None:
    runs = [{key: s[key] for key in s if key not in ("experiment", "stages")} for s in summaries]
    result = {"experiment": to_json(experiment), "failed": failed, "runs": runs}
    print()
    for table in compared(result):
        print(tables.text(table))
    print(f"\nFiles of each run: {root}/<recipe>/seed<n>   ({seconds:.0f} s)")
    write_json(root / COMPARISON, result)


def compared(result: Mapping[str, Any]) -> list[tables.Table]:
    """The tables of what a `comparison.json` holds, or the file of a sweep, whose runs have settings of their own."""
    failed = [{"recipe": recipe} for recipe, count in result.get("failed", {}).items() for _ in range(count)]
    common = {"experiment": result.get("experiment"), "stages": ()}
    return tables.compare(told_apart([Run(Path(), {**common, **run}) for run in [*result["runs"], *failed]]))
